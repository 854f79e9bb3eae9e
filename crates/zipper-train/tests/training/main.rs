//! Training on tiny models: the optimizer, and what a run computes on any number of ranks.

mod augment;
#[cfg(feature = "cuda")]
mod cuda;
mod exactness;
mod lid_head;
mod optimizer;
mod recovery;
mod sharding;
mod support;
mod texts;
mod trajectory;
