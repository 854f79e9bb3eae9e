//! Where transcripts go: to stdout, or into a folder with a file for each recording.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use zipper_cli::UserError;
use zipper_types::Step;

use crate::transcribe::format::{Format, Transcript, json_document};
use crate::transcribe::inputs::Input;

/// Takes the transcripts one after the other, in the order of the inputs.
pub(super) struct Output {
    format: Format,
    step: Step,
    place: Place,
}

enum Place {
    /// The document at once, of the only file.
    Document,
    /// A line for each file.
    Lines,
    /// One document for all files, at the end.
    Together(Vec<Transcript>),
    /// A document for each file.
    Folder(PathBuf),
}

impl Output {
    /// Makes the folder, and sees that everything has a place of its own.
    ///
    /// # Errors
    /// The user's to mend: a format that holds one transcript where there are several, two recordings with the same name, a
    /// file that is there already.
    pub(super) fn open(
        format: Format,
        folder: Option<&Path>,
        inputs: &[Input],
        step: Step,
    ) -> anyhow::Result<Self> {
        let place = match folder {
            Some(folder) => {
                check_names(folder, format, inputs)?;
                fs::create_dir_all(folder).map_err(|error| {
                    UserError::new(format!("cannot make `{}`: {error}", folder.display()))
                })?;
                Place::Folder(folder.to_owned())
            }
            None if inputs.len() > 1 && !format.holds_several() => {
                let error = UserError::new(format!(
                    "one `{}` document cannot hold {} files",
                    format.extension(),
                    inputs.len()
                ));
                return Err(error
                    .hint("give `--output` a folder, in which each gets its own")
                    .into());
            }
            None if format == Format::Json => Place::Together(Vec::new()),
            None if inputs.len() > 1 => Place::Lines,
            None => Place::Document,
        };
        Ok(Self { format, step, place })
    }

    /// Writes the transcript of `audio`, or keeps it for the end.
    ///
    /// # Errors
    /// If stdout is closed or the file cannot be written.
    pub(super) fn add(&mut self, audio: &Path, transcript: Transcript) -> anyhow::Result<()> {
        match &mut self.place {
            Place::Document => print(&self.format.document(&transcript, self.step)),
            Place::Lines => print(&transcript.labelled()),
            Place::Together(transcripts) => {
                transcripts.push(transcript);
                Ok(())
            }
            Place::Folder(folder) => {
                let path = file_for(folder, self.format, audio);
                write_whole(&path, &self.format.document(&transcript, self.step))
                    .with_context(|| format!("cannot write `{}`", path.display()))
            }
        }
    }

    /// Writes what was kept for the end.
    ///
    /// # Errors
    /// If stdout is closed.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        match self.place {
            Place::Together(transcripts) => print(&(json_document(&transcripts, self.step) + "\n")),
            Place::Document | Place::Lines | Place::Folder(_) => Ok(()),
        }
    }
}

/// Where the transcript of `audio` goes: `talk.mp3` becomes `talk.srt`.
fn file_for(folder: &Path, format: Format, audio: &Path) -> PathBuf {
    let mut name = audio.file_stem().unwrap_or_default().to_owned();
    name.push(".");
    name.push(format.extension());
    folder.join(name)
}

/// Refuses to write over anything, also of its own.
fn check_names(folder: &Path, format: Format, inputs: &[Input]) -> Result<(), UserError> {
    let mut taken: BTreeMap<PathBuf, &Path> = BTreeMap::new();
    for input in inputs {
        let path = file_for(folder, format, &input.path);
        if path.exists() {
            let error = UserError::new(format!("`{}` is there already", path.display()));
            return Err(error.hint("give `--output` another folder, or take what is there away"));
        }
        if let Some(other) = taken.insert(path.clone(), &input.path) {
            let error = UserError::new(format!(
                "`{}` and `{}` would both be written to `{}`",
                other.display(),
                input.path.display(),
                path.display()
            ));
            return Err(error.hint("transcribe them with two commands and two `--output`s"));
        }
    }
    Ok(())
}

/// A whole file or none, and never over another.
fn write_whole(path: &Path, document: &str) -> anyhow::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".transcribe-")
        // What a file made in the usual way has: the user's umask takes away from it.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)?;
    file.write_all(document.as_bytes())?;
    file.persist_noclobber(path)?;
    Ok(())
}

fn print(document: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(document.as_bytes())
        .and_then(|()| stdout.flush())
        .context("stdout is closed")
}
