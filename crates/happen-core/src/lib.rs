//! The contract under Happen, without a runtime: what an event is, what caused it, which patterns match it,
//! what a step returns, how bytes look, and the three seams. It knows no clock, no task and no thread.

pub mod pattern;
