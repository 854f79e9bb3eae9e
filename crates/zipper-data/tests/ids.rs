//! Goal: a list of ids is read as it is; what is repeated is named, and a file that is no list is refused with its line. Method:
//! small files as published, Windows line ends and byte order marks included.

use std::path::PathBuf;

use tempfile::TempDir;
use zipper_data::{IdList, IdListError, RepeatedId};

fn list(text: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("train_mls_it_ids.txt");
    std::fs::write(&file, text).expect("the folder is writable");
    (folder, file)
}

/// Shows that the order is the file's, and that line ends, blank lines and a byte order mark make no ids.
#[test]
fn ids_are_read_in_order() {
    let (_folder, file) = list("\u{feff}10_1_2\r\n\r\n  9_1_1\t\r\n8_0_0");
    let list = IdList::read(&file).expect("a list");
    assert_eq!(list.ids, ["10_1_2", "9_1_1", "8_0_0"]);
    assert!(list.repeated.is_empty());
}

/// Shows that a list with every id twice, as one is published, gives each once and names them all.
#[test]
fn a_doubled_list_names_every_id() {
    let (_folder, file) = list("a\nb\nc\na\nb\nc\nb\n");
    let list = IdList::read(&file).expect("a list");
    assert_eq!(list.ids, ["a", "b", "c"]);
    let repeated = |id: &str, times, line| RepeatedId {
        id: id.to_owned(),
        times,
        line,
    };
    assert_eq!(
        list.repeated,
        [repeated("a", 2, 4), repeated("b", 3, 5), repeated("c", 2, 6)]
    );
}

/// Shows that a table in place of a list, an empty file, other bytes than text, and no file at all are refused by name.
#[test]
fn what_is_no_list_is_refused() {
    let (_folder, file) = list("a\nb\tguten Tag\n");
    let error = IdList::read(&file).expect_err("a table");
    assert!(matches!(error, IdListError::NotAnId { line: 2, .. }), "{error}");
    let expected = format!("{}:2: more than an id: `b\tguten Tag`", file.display());
    assert!(error.to_string().starts_with(&expected), "{error}");

    let (_folder, file) = list("\n \n");
    let error = IdList::read(&file).expect_err("no id");
    assert!(matches!(error, IdListError::Empty { .. }), "{error}");

    let (_folder, file) = list([0xff, 0xfe, b'a', 0]);
    let error = IdList::read(&file).expect_err("UTF-16");
    assert!(matches!(error, IdListError::Unreadable { .. }), "{error}");

    let error = IdList::read(&file.with_file_name("absent.txt")).expect_err("no file");
    assert!(error.to_string().contains("absent.txt"), "{error}");
}
