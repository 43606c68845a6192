//! Event-driven and agentic systems out of two things: nodes and events.
