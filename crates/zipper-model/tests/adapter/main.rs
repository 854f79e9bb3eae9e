//! Goal: `zipper_model::adapter` keeps to the formulas of docs/concepts.md.
//! Method: golden values, gradients, properties, dropout and errors, each in its module.

mod adapted;
mod dropout;
mod errors;
mod golden;
mod gradient_check;
mod initialisation;
mod insight;
mod properties;
mod support;
