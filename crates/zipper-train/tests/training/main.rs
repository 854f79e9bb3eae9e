//! Goal: the optimizer, and what a run computes on any number of ranks, are what they should be.
//! Method: training on tiny models; each module says its own.

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
