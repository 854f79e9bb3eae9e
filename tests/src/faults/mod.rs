//! Random faults in real runs: what happens to each, and whether anything was lost.
//!
//! Reading order: `plan` (which fault, when, how long: from a seed), `site` (machine, store and job that a campaign uses),
//! `live` (one run under way and its events), `inject` (doing a fault and undoing it), `round` (one run with one fault, judged
//! against the run without), `report`; `soak` (one long run with a fault every so often), `resources` (whether it grows).

mod inject;
mod live;
mod plan;
mod report;
mod resources;
mod round;
mod site;
mod soak;

pub use live::{Ended, LiveRun};
pub use plan::{Kind, Plan};
pub use report::Report;
pub use resources::{Course, Held, Sample};
pub use round::Round;
pub use site::{Site, Size};
pub use soak::{Soak, SoakPlan};
