//! Contract suites, virtual time and test tools for Happen.
