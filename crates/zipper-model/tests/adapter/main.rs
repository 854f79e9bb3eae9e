//! Holds `zipper_model::adapter` to DESIGN 2: golden values, gradients, properties, dropout and errors.

mod dropout;
mod errors;
mod golden;
mod gradient_check;
mod initialisation;
mod insight;
mod properties;
mod support;
