//! The run configuration.

mod duration;
pub mod schema;
