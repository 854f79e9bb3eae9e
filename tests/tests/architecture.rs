//! Goal: the workspace keeps the shape that docs/ARCHITECTURE.md promises: crates know only those below them, the
//! torch-free ones do not link libtorch, and every dependency has its reasons written down.
//! Method: read what `cargo metadata` says, and the table in docs/dependencies.md.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A crate of the workspace, its layer, and the crates of the workspace that it may use.
struct Place {
    name: &'static str,
    layer: u8,
    torch: Torch,
    may_use: &'static [&'static str],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Torch {
    Linked,
    Free,
}

const fn torch_free(name: &'static str, layer: u8, may_use: &'static [&'static str]) -> Place {
    Place {
        name,
        layer,
        torch: Torch::Free,
        may_use,
    }
}

const fn links_torch(name: &'static str, layer: u8, may_use: &'static [&'static str]) -> Place {
    Place {
        name,
        layer,
        torch: Torch::Linked,
        may_use,
    }
}

/// The layers of docs/ARCHITECTURE.md. Development dependencies are left out: tests may look up.
const PLACES: &[Place] = &[
    torch_free("zipper-types", 0, &[]),
    torch_free("zipper-build", 0, &[]),
    torch_free("zipper-cli", 1, &["zipper-types"]),
    torch_free("zipper-config", 1, &["zipper-types"]),
    torch_free("zipper-plan", 1, &["zipper-types"]),
    torch_free("zipper-proto", 1, &["zipper-types"]),
    torch_free("zipper-score", 1, &["zipper-types"]),
    torch_free("zipper-report", 2, &["zipper-score", "zipper-types"]),
    torch_free("zipper-tls", 1, &[]),
    torch_free("zipper-checkpoint", 2, &["zipper-config", "zipper-types"]),
    torch_free("zipper-simstore", 1, &[]),
    torch_free(
        "zipper-data",
        2,
        &["zipper-config", "zipper-plan", "zipper-types"],
    ),
    torch_free(
        "zipper-watch",
        3,
        &[
            "zipper-checkpoint",
            "zipper-config",
            "zipper-plan",
            "zipper-proto",
            "zipper-types",
        ],
    ),
    links_torch("zipper-aten", 2, &["zipper-build"]),
    links_torch("zipper-collectives-sys", 2, &["zipper-build"]),
    links_torch(
        "zipper-collectives",
        2,
        &["zipper-build", "zipper-collectives-sys", "zipper-types"],
    ),
    links_torch(
        "zipper-model",
        3,
        &["zipper-aten", "zipper-build", "zipper-config", "zipper-types"],
    ),
    links_torch(
        "zipper-train",
        3,
        &[
            "zipper-aten",
            "zipper-build",
            "zipper-collectives",
            "zipper-config",
            "zipper-data",
            "zipper-model",
            "zipper-plan",
            "zipper-score",
            "zipper-types",
        ],
    ),
    torch_free(
        "zipper-coordinator",
        4,
        &[
            "zipper-checkpoint",
            "zipper-cli",
            "zipper-config",
            "zipper-plan",
            "zipper-proto",
            "zipper-score",
            "zipper-tls",
            "zipper-types",
            "zipper-watch",
        ],
    ),
    torch_free(
        "zipper-launch",
        4,
        &[
            "zipper-checkpoint",
            "zipper-cli",
            "zipper-config",
            "zipper-data",
            "zipper-plan",
            "zipper-proto",
            "zipper-report",
            "zipper-score",
            "zipper-tls",
            "zipper-types",
            "zipper-watch",
        ],
    ),
    links_torch(
        "zipper-worker",
        4,
        &[
            "zipper-build",
            "zipper-checkpoint",
            "zipper-cli",
            "zipper-collectives",
            "zipper-config",
            "zipper-data",
            "zipper-model",
            "zipper-plan",
            "zipper-proto",
            "zipper-report",
            "zipper-score",
            "zipper-tls",
            "zipper-train",
            "zipper-types",
        ],
    ),
    links_torch(
        "zipper-demo",
        4,
        &[
            "zipper-build",
            "zipper-cli",
            "zipper-config",
            "zipper-data",
            "zipper-model",
        ],
    ),
    torch_free("xtask", 4, &["zipper-cli"]),
    // Used by no other crate: plays the coordinator on a virtual clock.
    torch_free(
        "zipper-simulation",
        4,
        &[
            "zipper-checkpoint",
            "zipper-cli",
            "zipper-config",
            "zipper-coordinator",
            "zipper-proto",
            "zipper-simstore",
            "zipper-types",
        ],
    ),
    // Used only by tests of other crates; runs the programs, and watches them, and reads the checkpoints that they leave.
    torch_free(
        "zipper-tests",
        4,
        &["zipper-checkpoint", "zipper-proto", "zipper-tls", "zipper-types"],
    ),
];

/// Arrows inside one layer.
const SIDEWAYS: &[(&str, &str)] = &[
    ("zipper-collectives", "zipper-collectives-sys"),
    ("zipper-train", "zipper-model"),
    ("zipper-simulation", "zipper-coordinator"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .expect("the workspace encloses this package")
}

fn place(name: &str) -> &'static Place {
    PLACES.iter().find(|place| place.name == name).unwrap_or_else(|| {
        panic!("crate `{name}` has no place in PLACES: give it a layer, and docs/ARCHITECTURE.md a row")
    })
}

/// What the workspace is built from, for the machines it is built for.
struct Metadata(Value);

impl Metadata {
    fn read() -> Self {
        let output = Command::new(env!("CARGO"))
            .args([
                "metadata",
                "--format-version",
                "1",
                "--filter-platform",
                "x86_64-unknown-linux-gnu",
            ])
            .current_dir(root())
            .output()
            .expect("cargo, which runs this test, can be started");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Self(serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON"))
    }

    fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
        value[key]
            .as_array()
            .unwrap_or_else(|| panic!("cargo metadata has no list `{key}`"))
    }

    fn text<'a>(value: &'a Value, key: &str) -> &'a str {
        value[key]
            .as_str()
            .unwrap_or_else(|| panic!("cargo metadata has no text `{key}`"))
    }

    /// The crates of the workspace, each with the crates of the workspace that it uses outside tests.
    fn workspace(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let members: BTreeSet<&str> = Self::list(&self.0, "workspace_members")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let is_internal = |dependency: &&Value| dependency["path"].is_string() && dependency["kind"] != "dev";
        Self::list(&self.0, "packages")
            .iter()
            .filter(|package| members.contains(Self::text(package, "id")))
            .map(|package| {
                let dependencies = Self::list(package, "dependencies").iter().filter(is_internal);
                (
                    Self::text(package, "name"),
                    dependencies.map(|used| Self::text(used, "name")).collect(),
                )
            })
            .collect()
    }

    /// The names of all crates that building `name` needs, tests left out.
    fn reachable_from(&self, name: &str) -> BTreeSet<&str> {
        let names: BTreeMap<&str, &str> = Self::list(&self.0, "packages")
            .iter()
            .map(|package| (Self::text(package, "id"), Self::text(package, "name")))
            .collect();
        let edges: BTreeMap<&str, Vec<&str>> = Self::list(&self.0["resolve"], "nodes")
            .iter()
            .map(|node| {
                let is_built = |used: &&Value| {
                    Self::list(used, "dep_kinds")
                        .iter()
                        .any(|kind| kind["kind"] != "dev")
                };
                let used = Self::list(node, "deps").iter().filter(is_built);
                (
                    Self::text(node, "id"),
                    used.map(|used| Self::text(used, "pkg")).collect(),
                )
            })
            .collect();
        let start = names.iter().find(|(_, other)| **other == name).map(|(id, _)| *id);
        let mut open = vec![start.unwrap_or_else(|| panic!("crate `{name}` is not in the workspace"))];
        let mut seen = BTreeSet::new();
        while let Some(id) = open.pop() {
            if seen.insert(id) {
                open.extend(&edges[id]);
            }
        }
        seen.into_iter().map(|id| names[id]).collect()
    }
}

#[test]
fn places_themselves_point_down() {
    for Place {
        name, layer, may_use, ..
    } in PLACES
    {
        for used in *may_use {
            let below = place(used).layer;
            assert!(
                below < *layer || SIDEWAYS.contains(&(name, used)),
                "PLACES lets `{name}` (layer {layer}) use `{used}` (layer {below})"
            );
        }
    }
}

#[test]
fn crates_use_only_those_below_them() {
    let metadata = Metadata::read();
    let workspace = metadata.workspace();
    for (name, dependencies) in &workspace {
        let allowed: BTreeSet<&str> = place(name).may_use.iter().copied().collect();
        let forbidden: Vec<&&str> = dependencies.difference(&allowed).collect();
        assert!(
            forbidden.is_empty(),
            "`{name}` uses {forbidden:?}, which docs/ARCHITECTURE.md does not allow"
        );
    }
    let gone: Vec<&str> = PLACES
        .iter()
        .map(|place| place.name)
        .filter(|name| !workspace.contains_key(name))
        .collect();
    assert!(
        gone.is_empty(),
        "PLACES names crates that are not in the workspace: {gone:?}"
    );
}

/// The coordinator, the launcher and all that they are made of build in seconds, on machines without libtorch.
#[test]
fn torch_free_crates_do_not_reach_libtorch() {
    let metadata = Metadata::read();
    for Place { name, torch, .. } in PLACES {
        let reached = metadata.reachable_from(name);
        let found: Vec<&str> = ["torch-sys", "tch", "zipper-aten", "zipper-collectives-sys"]
            .into_iter()
            .filter(|torch| reached.contains(torch))
            .collect();
        assert_eq!(
            found.is_empty(),
            *torch == Torch::Free,
            "`{name}` reaches {found:?}"
        );
    }
}

/// The crates named in the first cells of the tables in docs/dependencies.md, under the heading of Rust crates.
fn documented_crates() -> BTreeSet<String> {
    let path = root().join("docs/dependencies.md");
    let page = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let crates = page
        .split("\n## ")
        .find(|section| section.starts_with("Rust crates"));
    let rows = crates
        .expect("docs/dependencies.md has a section `Rust crates`")
        .lines();
    rows.filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|row| row.split('|').next())
        .flat_map(|cell| {
            cell.split('`')
                .map(str::trim)
                .filter(|name| !matches!(*name, "" | ","))
        })
        .map(str::to_owned)
        .collect()
}

/// The third-party crates of `[workspace.dependencies]`: the lines of that table that name no path.
fn chosen_crates() -> BTreeSet<String> {
    let path = root().join("Cargo.toml");
    let manifest = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let table = manifest
        .split("\n[")
        .find(|table| table.starts_with("workspace.dependencies]"));
    let lines = table
        .expect("Cargo.toml has a table [workspace.dependencies]")
        .lines();
    lines
        .filter(|line| !line.contains("path ="))
        .filter_map(|line| line.split_once(" = "))
        .map(|(name, _)| name.trim().to_owned())
        .collect()
}

#[test]
fn every_third_party_crate_has_its_reasons_written_down() {
    let (documented, chosen) = (documented_crates(), chosen_crates());
    assert!(chosen.len() > 30, "Cargo.toml was misread: {chosen:?}");
    let missing: Vec<&String> = chosen.difference(&documented).collect();
    assert!(
        missing.is_empty(),
        "docs/dependencies.md says nothing about {missing:?}"
    );
    let stale: Vec<&String> = documented.difference(&chosen).collect();
    assert!(
        stale.is_empty(),
        "docs/dependencies.md explains {stale:?}, which Cargo.toml no longer has"
    );
}

/// Versions stand in one place, and what that page explains is all there is: no crate brings its own.
#[test]
fn every_dependency_comes_from_the_workspace_table() {
    let metadata = Metadata::read();
    let chosen = chosen_crates();
    let members: BTreeSet<&str> = metadata.workspace().into_keys().collect();
    for package in Metadata::list(&metadata.0, "packages") {
        let name = Metadata::text(package, "name");
        if !members.contains(name) {
            continue;
        }
        for dependency in Metadata::list(package, "dependencies") {
            let used = Metadata::text(dependency, "name");
            assert!(
                chosen.contains(used) || members.contains(used),
                "`{name}` depends on `{used}`, which is not in [workspace.dependencies]"
            );
        }
    }
}
