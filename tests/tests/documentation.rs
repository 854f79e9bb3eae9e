//! Goal: the documentation holds together: links lead to what is there, and the book has every page.
//! Method: every Markdown file is parsed; links with a path must name a file of the repository, and what stands behind `#` a heading in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

/// Folders with documentation, besides the files in the root.
const FOLDERS: [&str; 3] = ["docs", "cluster", "crates"];
const SUMMARY: &str = "docs/SUMMARY.md";

/// What a page says about where one can go.
#[derive(Debug, Default)]
struct Page {
    /// Targets of links and pictures.
    links: Vec<String>,
    /// What one can go to by `#`.
    anchors: BTreeSet<String>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .expect("the repository is there")
}

fn is_markdown(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "md")
}

/// Paths below the root of all Markdown files.
fn markdown_files() -> Vec<PathBuf> {
    let root = root();
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = FOLDERS.iter().map(|folder| root.join(folder)).collect();
    let entries = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).expect("a folder can be listed");
        entries
            .map(|entry| entry.expect("an entry can be read").path())
            .collect()
    };
    files.extend(entries(&root).into_iter().filter(|path| is_markdown(path)));
    while let Some(folder) = folders.pop() {
        for path in entries(&folder) {
            if path.is_dir() {
                folders.push(path);
            } else if is_markdown(&path) {
                files.push(path);
            }
        }
    }
    files.sort();
    files
        .into_iter()
        .map(|path| path.strip_prefix(&root).expect("it is below").to_owned())
        .collect()
}

fn parse(text: &str) -> Page {
    let mut page = Page::default();
    let mut heading: Option<String> = None;
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                page.links.push(dest_url.to_string());
            }
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::Text(text) | Event::Code(text) => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&text);
                }
            }
            Event::End(TagEnd::Heading(_)) => {
                let anchor = anchor(&heading.take().unwrap_or_default());
                let before = seen.entry(anchor.clone()).or_default();
                page.anchors.insert(match *before {
                    0 => anchor,
                    times => format!("{anchor}-{times}"),
                });
                *before += 1;
            }
            _ => {}
        }
    }
    page
}

/// How forges and mdBook make an anchor of a heading.
fn anchor(heading: &str) -> String {
    heading
        .to_lowercase()
        .chars()
        .filter_map(|letter| match letter {
            ' ' => Some('-'),
            '-' | '_' => Some(letter),
            letter => letter.is_alphanumeric().then_some(letter),
        })
        .collect()
}

/// `path` without `..`.
fn tidy(path: &Path) -> PathBuf {
    let mut tidy = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                tidy.pop();
            }
            Component::CurDir => {}
            component => tidy.push(component),
        }
    }
    tidy
}

fn pages() -> BTreeMap<PathBuf, Page> {
    let root = root();
    let page = |file: PathBuf| {
        let text = fs::read_to_string(root.join(&file)).expect("a page is text");
        (file, parse(&text))
    };
    markdown_files().into_iter().map(page).collect()
}

#[test]
fn links_lead_somewhere() {
    let (root, pages) = (root(), pages());
    let mut problems = Vec::new();
    let mut checked = 0;
    for (file, page) in &pages {
        for link in page.links.iter().filter(|link| !link.contains("://")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => file.clone(),
                path => tidy(&file.parent().unwrap_or(Path::new("")).join(path)),
            };
            checked += 1;
            if !root.join(&target).exists() {
                problems.push(format!("{}: `{link}` is not there", file.display()));
            } else if !anchor.is_empty()
                && let Some(page) = pages.get(&target)
                && !page.anchors.contains(anchor)
            {
                problems.push(format!("{}: `{link}`: no such heading", file.display()));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(
        checked > 100,
        "{checked} links are not all of the documentation's"
    );
}

#[test]
fn the_book_has_every_page() {
    let pages = pages();
    let summary = &pages[Path::new(SUMMARY)];
    let listed: BTreeSet<PathBuf> = summary
        .links
        .iter()
        .map(|link| Path::new("docs").join(link))
        .collect();
    let there: BTreeSet<PathBuf> = pages
        .into_keys()
        .filter(|file| file.starts_with("docs") && file != Path::new(SUMMARY))
        .collect();
    let missing: Vec<_> = there.difference(&listed).collect();
    assert!(missing.is_empty(), "{SUMMARY} does not list {missing:?}");
}

/// Goal: a page of the book links to no page outside it: mdBook would make a link to a `.html` of it, which nobody makes.
#[test]
fn pages_of_the_book_link_to_pages_of_the_book() {
    let docs = Path::new("docs");
    let mut outside = Vec::new();
    for (path, page) in pages().iter().filter(|(path, _)| path.starts_with(docs)) {
        for link in page.links.iter().filter(|link| !link.contains("://")) {
            let target = link.split('#').next().unwrap_or(link);
            let folder = path.parent().expect("a page is in a folder");
            let target = tidy(&folder.join(target));
            if is_markdown(&target) && !target.starts_with(docs) {
                outside.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(outside.is_empty(), "{outside:#?}");
}

/// Goal: the help of every command has examples. Method: the reference of commands, which is what they print.
#[test]
fn every_command_has_examples() {
    let reference = fs::read_to_string(root().join("docs/commands.md")).expect("the reference is there");
    let sections = reference.split("\n## ").skip(1);
    let without: Vec<&str> = sections
        .filter(|section| !section.contains("<COMMAND>") && !section.contains("\nExamples:\n"))
        .filter_map(|section| section.lines().next())
        .collect();
    assert!(without.is_empty(), "{without:?}");
}

#[test]
fn anchors_are_made_of_headings() {
    let page = parse("# `a.b`: What, how?\n\n## Same\n\n## Same\n\n[x](y.md#z) ![p](q.png)\n");
    let anchors: Vec<&str> = page.anchors.iter().map(String::as_str).collect();
    assert_eq!(anchors, ["ab-what-how", "same", "same-1"]);
    assert_eq!(page.links, ["y.md#z", "q.png"]);
}
