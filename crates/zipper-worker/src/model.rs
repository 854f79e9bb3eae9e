//! The model of a checkpoint, for the tools that let it write.

use tch::Device;
use zipper_cli::UserError;
use zipper_config::RunConfig;
use zipper_train::replica::Replica;
use zipper_train::state::TrainState;
use zipper_types::Stage;

use crate::checkpoint::Parts;

/// The model as the checkpoint has it, with the banks of all languages.
///
/// # Errors
/// The user's to mend if the frozen models that `config` names cannot be used.
pub(crate) fn load(config: &RunConfig, parts: &Parts) -> anyhow::Result<Replica> {
    let state = TrainState::read(|names| parts.read(names))?;
    let every_bank = (0..config.data.languages.len()).collect();
    let mut replica =
        Replica::load(config, Stage::Align, Device::Cpu, every_bank).map_err(user_error_if_config)?;
    if state.stage == Stage::Zipper {
        replica.enter_zipper_stage()?;
    }
    replica.restore(|names| parts.read(names))?;
    Ok(replica)
}

/// Faults of the configuration end with exit code 2.
pub(crate) fn user_error_if_config(error: zipper_train::TrainError) -> anyhow::Error {
    if error.is_config() {
        UserError::new(error.to_string()).into()
    } else {
        error.into()
    }
}
