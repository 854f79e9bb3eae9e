//! What must come from the machine: system packages, disk space.

use std::env;
use std::path::Path;

use anyhow::Context;
use nix::sys::statvfs::statvfs;
use zipper_cli::UserError;

const GIB: u64 = 1 << 30;

/// Programs that are needed and the Debian packages that hold them.
const PROGRAMS: [(&str, &str); 4] = [
    ("g++", "g++"),
    ("cmake", "cmake"),
    ("make", "make"),
    ("espeak-ng", "espeak-ng"),
];

/// # Errors
/// [`UserError`] with the apt-get line that installs what is missing.
pub(crate) fn check_packages() -> Result<(), UserError> {
    let missing: Vec<(&str, &str)> = PROGRAMS
        .into_iter()
        .filter(|(program, _)| !is_on_path(program))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let programs: Vec<String> = missing
        .iter()
        .map(|(program, _)| format!("`{program}`"))
        .collect();
    let packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    Err(
        UserError::new(format!("this machine lacks {}", programs.join(", "))).hint(format!(
            "on Debian and Ubuntu: apt-get update && apt-get install -y --no-install-recommends {}",
            packages.join(" ")
        )),
    )
}

fn is_on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Checks that `bytes` fit on the disk that `folder` is or will be on.
///
/// # Errors
/// [`UserError`] if they do not.
pub(crate) fn check_space(folder: &Path, bytes: u64) -> anyhow::Result<()> {
    let existing = folder
        .ancestors()
        .find(|folder| folder.exists())
        .unwrap_or(Path::new("."));
    let disk = statvfs(existing)
        .with_context(|| format!("cannot tell how much space there is in `{}`", existing.display()))?;
    let free = disk.blocks_available().saturating_mul(disk.fragment_size());
    if free < bytes {
        return Err(no_space(existing, bytes, free).into());
    }
    Ok(())
}

fn no_space(folder: &Path, bytes: u64, free: u64) -> UserError {
    let gib = |bytes: u64| bytes as f64 / GIB as f64;
    UserError::new(format!(
        "{:.1} GiB are needed in `{}`, {:.1} GiB are free",
        gib(bytes),
        folder.display(),
        gib(free)
    ))
    .hint("free some space, or put the repository on a larger disk")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk is never large enough for everything there could be, and always for nothing.
    #[test]
    fn space_is_checked_where_the_folder_will_be() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("not/there/yet");
        check_space(&inside, 0).unwrap();
        let error = check_space(&inside, u64::MAX).unwrap_err().to_string();
        assert!(error.contains("GiB are needed in"), "{error}");
        assert!(error.contains(&folder.path().display().to_string()), "{error}");
    }
}
