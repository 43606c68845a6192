//! Happen across machines: NATS JetStream as link and store.
