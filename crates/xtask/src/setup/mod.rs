//! `cargo xtask setup`: checks this machine, fetches libtorch and the S3-compatible server of the tests.
//!
//! Nothing outside the repository is touched: system packages are named, not installed.

mod libtorch;
pub(crate) mod python;
mod seaweedfs;
mod system;
mod wheels;

pub(crate) use libtorch::Flavor;
pub(crate) use wheels::platforms;

use crate::workspace::Workspace;

/// Leaves the repository ready for `cargo build`.
///
/// # Errors
/// [`zipper_cli::UserError`] naming what the machine lacks and how to get it.
pub(crate) fn run(workspace: &Workspace, flavor: Flavor) -> anyhow::Result<()> {
    let python = python::System::find()?;
    system::check_packages()?;
    flavor.wheels().install(workspace, &python)?;
    seaweedfs::SEAWEEDFS.install(workspace, &python)?;
    println!("setup: ready; `cargo build` works now");
    Ok(())
}

/// Whether everything that CUDA needs is installed.
///
/// # Errors
/// If the list of packages cannot be read.
pub(crate) fn has_cuda(workspace: &Workspace) -> anyhow::Result<bool> {
    Ok(Flavor::Cuda.wheels().missing(workspace)?.is_none())
}
