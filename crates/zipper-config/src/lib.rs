//! The run configuration.

pub mod schema;
