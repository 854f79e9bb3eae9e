//! Pure decisions: which utterances are in a global batch, which rank takes which, what the learning rate is, which
//! stage a step belongs to.
//!
//! Everything here is a function of its arguments; there is no I/O, no clock and no tensor. The sampler is the
//! anchor of exactness (docs/decisions/0002): it knows nothing of ranks.

mod calibration;
mod dealing;
mod expected;
mod inventory;
mod learning_rate;
mod placement;
mod sampler;
mod stages;
pub mod succession;
mod work;

pub use calibration::{MeasuredLanguage, MeasuredStep};
pub use dealing::{deal, micro_batches};
pub use expected::{LanguageAmount, expected_work};
pub use inventory::{AdapterShape, Inventory, ProjectorShape, SiteShape, banks_that_fit, transformer_layers};
pub use learning_rate::{LearningRate, Shape};
pub use placement::{Placement, PlacementProblem};
pub use sampler::{GlobalBatch, PlanError, Sampler, SamplerProblem, SamplerState, UtteranceRef};
pub use stages::StageSchedule;
pub use succession::{Succession, succession};
pub use work::{StepSample, WorkModel};
