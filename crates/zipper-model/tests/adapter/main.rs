//! Holds `zipper_model::adapter` to the formulas of docs/concepts.md: golden values, gradients, properties, dropout and errors.

mod adapted;
mod dropout;
mod errors;
mod golden;
mod gradient_check;
mod initialisation;
mod insight;
mod properties;
mod support;
