//! The run configuration: one YAML file, defaults, overrides, validation.
//!
//! [`load`] is the way in, or [`load_checked`], which looks whether the files are there; [`schema`] says what every key means, and
//! [`mod@reference`] tells people and editors; [`sweep`] makes many configurations of one, for comparisons. Never looks at the network,
//! the device or the contents of the files that a configuration points to.

mod duration;
mod load;
mod problems;
pub mod reference;
pub mod schema;
pub mod sweep;
mod validate;
mod warnings;

pub use load::{from_str, from_str_checked, load, load_checked};
pub use problems::{ConfigErrors, Problem, nearest};
pub use schema::RunConfig;
