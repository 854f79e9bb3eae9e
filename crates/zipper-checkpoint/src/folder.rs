//! What only a run in a folder needs: a writer that is killed leaves `name#1` beside `name`, which no listing shows, and
//! folders stay when their files go.

use std::fs;
use std::path::{Path, PathBuf};

use crate::layout;

/// Deletes the unfinished files of objects that `over` says nobody writes any more. Returns how many.
pub(crate) fn collect_staged(run: &Path, over: impl Fn(&str) -> bool) -> usize {
    let staged = staged_files(&run.join(layout::CHECKPOINTS));
    let collected = staged.iter().filter(|staged| {
        let object = staged.strip_prefix(run).ok().and_then(Path::to_str);
        let object = object.and_then(|object| object.rsplit_once('#'));
        // One that is gone meanwhile, or stays, is no harm.
        object.is_some_and(|(object, _)| over(object)) && fs::remove_file(staged).is_ok()
    });
    collected.count()
}

/// Deletes `folder` and those in it, as far as they are empty.
pub(crate) fn prune(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            prune(&entry.path());
        }
    }
    // One that is not empty stays: that is the point.
    let _ = fs::remove_dir(folder);
}

/// The files in `folder` and below whose name ends in `#` and a number. What cannot be read is passed over.
fn staged_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(staged_files(&path));
        } else if is_staged(&path) {
            found.push(path);
        }
    }
    found
}

fn is_staged(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let number = name.and_then(|name| name.rsplit_once('#'));
    number.is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: only what object_store itself leaves is taken for an unfinished file.
    #[test]
    fn unfinished_files_end_in_a_number() {
        for (name, staged) in [
            ("de.safetensors#1", true),
            ("de.safetensors#12", true),
            ("de.safetensors", false),
            ("de.safetensors#", false),
            ("de.safetensors#1a", false),
            ("1", false),
        ] {
            assert_eq!(is_staged(&Path::new("banks").join(name)), staged, "{name}");
        }
    }
}
