//! A wall clock that jumps: libfaketime before a program, with an offset that is read from a file.
//!
//! Only the wall clock: monotonic time, by which processes measure durations, is never set by anybody either.

use std::fs;
use std::path::{Path, PathBuf};

use super::NotPermitted;

/// Where Debian's package libfaketime puts it.
const FOLDERS: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/faketime",
    "/usr/lib/aarch64-linux-gnu/faketime",
];
/// For programs with threads.
const LIBRARY: &str = "libfaketimeMT.so.1";

/// A clock that programs started with its variables believe.
#[derive(Debug)]
pub struct FalseClock {
    folder: tempfile::TempDir,
    library: PathBuf,
}

impl FalseClock {
    /// A clock that is right, so far.
    ///
    /// # Errors
    /// [`NotPermitted`] if libfaketime is not installed.
    ///
    /// # Panics
    /// If no temporary file can be written.
    pub fn new() -> Result<Self, NotPermitted> {
        let mut libraries = FOLDERS.iter().map(|folder| Path::new(folder).join(LIBRARY));
        let library = libraries.find(|path| path.exists()).ok_or_else(|| {
            NotPermitted("libfaketime is not installed: apt-get install libfaketime".to_owned())
        })?;
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let clock = Self { folder, library };
        clock.step(0);
        Ok(clock)
    }

    /// Sets it this many seconds before or after the right time. Programs notice within a second.
    ///
    /// # Panics
    /// If the file cannot be written.
    pub fn step(&self, seconds: i64) {
        // Renamed into place: a reader never finds half of it.
        let next = self.folder.path().join("next");
        fs::write(&next, format!("{seconds:+}\n")).expect("the clock's folder is writable");
        fs::rename(next, self.file()).expect("the clock's folder is writable");
    }

    /// The variables of programs that shall believe it.
    pub fn env(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.display().to_string();
        [
            ("LD_PRELOAD", text(&self.library)),
            ("FAKETIME_TIMESTAMP_FILE", text(&self.file())),
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("NO_FAKE_STAT", "1".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("offset")
    }
}
