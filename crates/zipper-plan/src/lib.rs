//! Pure decisions: which utterances are in a global batch; which rank owns which bank and takes which utterance; who takes whose place
//! when ranks come and go; what a step and a rank's memory cost; the learning rate; which stage a step belongs to.
//!
//! Everything here is a function of its arguments; there is no I/O, no clock and no tensor. The sampler is the
//! anchor of exactness (docs/decisions/0002): it knows nothing of ranks.
//!
//! Reading order: `sampler`, `work` (what an utterance costs) and `calibration` (what steps took), `expected`, `placement`, `dealing`,
//! [`mod@succession`], `inventory`, `stages`, `learning_rate`, `error`.

mod calibration;
mod dealing;
mod error;
mod expected;
mod inventory;
mod learning_rate;
mod placement;
mod sampler;
mod stages;
pub mod succession;
mod work;

pub use calibration::{MeasuredLanguage, MeasuredStep};
pub use dealing::micro_batches;
pub use error::PlanError;
pub use expected::{LanguageAmount, expected_epochs, expected_work};
pub use inventory::{AdapterShape, Inventory, ProjectorShape, SiteShape, banks_that_fit, transformer_layers};
pub use learning_rate::{LearningRate, Shape};
pub use placement::{Placement, PlacementProblem};
pub use sampler::{GlobalBatch, Sampler, SamplerProblem, SamplerState, UtteranceRef};
pub use stages::StageSchedule;
pub use succession::{Succession, succession};
pub use work::WorkModel;
