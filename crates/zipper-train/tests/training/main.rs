//! Training on tiny models: the optimizer, and what a run computes on any number of ranks.

#[cfg(feature = "cuda")]
mod cuda;
mod exactness;
mod optimizer;
mod recovery;
mod sharding;
mod support;
mod trajectory;
