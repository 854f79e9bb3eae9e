//! Watching a run: what people and machines are shown of it, and in which forms.
//!
//! Owns the [`Picture`] of a run (what is going on, made of what the coordinator tells, of its journal and of its metrics),
//! the [`series`] of its steps, and what they are shown with: the status [`page`], `prometheus`, [`tensorboard`]. Decides
//! nothing about a run, and nothing here can hold one up or end it.
//!
//! Reading order: [`picture`], [`events`] (how what happens changes it), [`series`], [`gates`], [`journal`] and [`past`] (what a run's store
//! tells), [`page`], `prometheus`, [`tensorboard`].

pub mod events;
pub mod gates;
pub mod journal;
pub mod page;
pub mod past;
pub mod picture;
mod prometheus;
pub mod series;
pub mod tensorboard;

pub use gates::Gates;
pub use past::Past;
pub use picture::Picture;
pub use series::Series;

use std::time::SystemTime;

/// The time of day as pictures and journals have it.
pub fn now_text() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}
