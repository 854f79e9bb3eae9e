//! A disk that is soon full: a small tmpfs.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{NotPermitted, run};

/// Name of the file that takes all space.
const BALLAST: &str = ".ballast";

/// A mounted file system of a few MiB. It goes with this value.
#[derive(Debug)]
pub struct SmallDisk {
    folder: tempfile::TempDir,
    mebibytes: u32,
}

impl SmallDisk {
    /// Mounts one.
    ///
    /// # Errors
    /// [`NotPermitted`] without root.
    ///
    /// # Panics
    /// If there is no temporary folder to mount it on.
    pub fn mount(mebibytes: u32) -> Result<Self, NotPermitted> {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "zipper-test"]);
        run(mount.arg(folder.path()))
            .map_err(|error| NotPermitted(format!("a tmpfs cannot be mounted, which needs root: {error}")))?;
        Ok(Self { folder, mebibytes })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Takes all space that is left.
    ///
    /// # Panics
    /// If a byte can be written afterwards.
    pub fn fill(&self) {
        // The write ends with what fits, and an error that there is no more.
        let too_much = vec![0; (self.mebibytes as usize + 1) * (1 << 20)];
        let written = fs::write(self.path().join(BALLAST), too_much);
        assert!(written.is_err(), "the disk took more than its size");
    }

    /// Gives it back.
    ///
    /// # Panics
    /// If it was not taken.
    pub fn free(&self) {
        fs::remove_file(self.path().join(BALLAST)).expect("the disk was filled");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whoever still has a file open keeps it.
        if let Err(error) = run(Command::new("umount").arg("--lazy").arg(self.path())) {
            eprintln!("`{}` stays mounted: {error}", self.path().display());
        }
    }
}
