//! Goal: the protocols of checkpoints, journal and lease hold whatever is lost, and whoever is killed or stopped, at any request.
//! Method: a store in memory whose clients fail on demand; every request of a protocol is tried, before and after its effect.

mod formats;
mod journal;
mod kills;
mod lease;
mod random;
mod requests;
