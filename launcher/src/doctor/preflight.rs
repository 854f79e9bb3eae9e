//! What every launch looks at before it starts anything: what takes milliseconds, and is sure.

use zipper_checkpoint::RunStore;
use zipper_cli::UserError;
use zipper_config::RunConfig;

use super::finding::{Finding, Level};
use super::{room, store};
use crate::devices::Crew;

/// Refuses a run that would surely fail; warns of one that may go badly. `here`: its nodes are this machine.
///
/// # Errors
/// With all that would make it fail, and what to do: the user's to mend, unless it is a store that is away or full, which may pass.
pub(crate) async fn preflight(
    config: &RunConfig,
    crew: &Crew,
    run: &RunStore,
    here: bool,
) -> anyhow::Result<()> {
    let mut findings = super::of_machine(config, crew, here);
    findings.extend(room::disks(config, run));
    findings.extend(store::look(run).await);
    let (failures, others): (Vec<Finding>, Vec<Finding>) = findings
        .into_iter()
        .partition(|finding| finding.level == Level::Failure);
    for warning in others.iter().filter(|finding| finding.level == Level::Warning) {
        eprintln!("warning: {}", warning.found);
        for fix in &warning.fixes {
            eprintln!("  fix: {fix}");
        }
    }
    if failures.is_empty() {
        return Ok(());
    }
    let found: Vec<&str> = failures.iter().map(|failure| failure.found.as_str()).collect();
    let mut error = UserError::new(format!("this run would fail: {}", found.join("; ")));
    for fix in failures.iter().flat_map(|failure| &failure.fixes) {
        if !error.hints().contains(fix) {
            error = error.hint(fix);
        }
    }
    error = error.hint("`zipper-launch doctor` looks at everything; `--no-preflight` starts nevertheless");
    if failures.iter().all(|failure| failure.may_pass) {
        error = error.may_pass();
    }
    Err(error.into())
}
