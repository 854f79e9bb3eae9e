//! Many runs side by side: error rates by language and by group of languages with bootstrap intervals, relative changes against
//! baselines, and how fast and at what cost they were reached; as Markdown, CSV and one HTML page. And one run looked into: what its
//! router learnt.
//!
//! Owns the statistics of a comparison and how it is shown. Never reads runs: what is compared is given to it.
//!
//! Reading order: [`sample`] (what was counted), [`bootstrap`] (how sure it is), [`comparison`] (what is laid beside what),
//! [`tables`] (what is said of it), [`render`]; [`insight`].

pub mod bootstrap;
pub mod comparison;
pub mod insight;
pub mod render;
pub mod sample;
pub mod tables;

pub use comparison::{Comparison, Costs, Group, Run};
pub use sample::Sample;
