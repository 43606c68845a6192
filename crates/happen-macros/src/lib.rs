//! Derives for data only: `Event` names a payload, `State` names and versions a state.
