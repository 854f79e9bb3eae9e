//! `cargo xtask dist`: the programs as a tarball that needs nothing but libtorch.

use std::env::consts::ARCH;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::checks;
use crate::setup;
use crate::workspace::{self, Workspace, printed};

const PROGRAMS: [&str; 3] = ["zipper-coordinator", "zipper-launch", "zipper-worker"];
/// From the repository, and where in the tarball.
const FILES: [(&str, &str); 4] = [
    ("LICENSE", "LICENSE"),
    ("CHANGELOG.md", "CHANGELOG.md"),
    ("crates/xtask/dist/README.md", "README.md"),
    ("crates/xtask/requirements/libtorch-cpu.txt", "libtorch.txt"),
];
const SCRIPT: &str = "install-libtorch.sh";

/// Builds the programs and writes `target/dist/zipper-<version>-<arch>-linux.tar.gz`, then unpacks it elsewhere and starts them there.
///
/// # Errors
/// What building fails with, or what a program in the unpacked tarball says.
pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<()> {
    checks::install_tools(workspace)?;
    workspace.programs()?;
    let name = format!("zipper-{}-{ARCH}-linux", env!("CARGO_PKG_VERSION"));
    let dist = workspace.root().join("target/dist");
    let folder = dist.join(&name);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove `{}`", folder.display()))?;
    }
    fill(workspace, &folder)?;
    let tarball = dist.join(format!("{name}.tar.gz"));
    pack(workspace, &dist, &name, &tarball)?;
    check(workspace, &tarball, &name)?;
    println!("dist: {}", tarball.display());
    Ok(())
}

/// Puts everything in its place.
fn fill(workspace: &Workspace, folder: &Path) -> anyhow::Result<()> {
    let root = workspace.root();
    for below in ["bin", "man"] {
        let below = folder.join(below);
        fs::create_dir_all(&below).with_context(|| format!("cannot make `{}`", below.display()))?;
    }
    for program in PROGRAMS {
        copy(
            &root.join("target/release").join(program),
            &folder.join("bin").join(program),
        )?;
    }
    for (from, to) in FILES {
        copy(&root.join(from), &folder.join(to))?;
    }
    let platforms: Vec<String> = setup::platforms()
        .iter()
        .map(|platform| format!("--platform {platform}"))
        .collect();
    let script = read(&root.join("crates/xtask/dist").join(SCRIPT))?;
    let script = script.replace("@PLATFORMS@", &platforms.join(" "));
    let to = folder.join(SCRIPT);
    write(&to, &script)?;
    fs::set_permissions(&to, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make `{}` executable", to.display()))?;
    workspace::run(
        workspace
            .command("cp")
            .arg("-r")
            .arg(root.join("configs"))
            .arg(folder),
    )?;
    for program in ["zipper-launch", "zipper-worker"] {
        workspace::run(
            workspace
                .command(folder.join("bin").join(program))
                .arg("man")
                .arg(folder.join("man")),
        )?;
    }
    let mut licences = checks::tool(workspace, "deny");
    licences.args(["list", "--layout", "crate", "--format", "human"]);
    write(&folder.join("THIRD-PARTY.txt"), &printed(&mut licences)?)
}

/// The same bytes whoever packs the same files.
fn pack(workspace: &Workspace, dist: &Path, name: &str, tarball: &Path) -> anyhow::Result<()> {
    let mut tar = workspace.command("tar");
    tar.arg("--create")
        .arg("--file")
        .arg(tarball)
        .arg("--directory")
        .arg(dist);
    tar.args([
        "--sort=name",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        "--mtime=@0",
    ]);
    workspace::run(tar.args(["--use-compress-program=gzip -n -9", name]))
}

/// Fetches libtorch where nothing else is, starts the programs there with an empty environment, and looks which libtorch they find.
fn check(workspace: &Workspace, tarball: &Path, name: &str) -> anyhow::Result<()> {
    let place = std::env::temp_dir().join(format!("zipper-dist-{}", std::process::id()));
    fs::create_dir_all(&place).with_context(|| format!("cannot make `{}`", place.display()))?;
    let checked = check_in(workspace, tarball, name, &place);
    fs::remove_dir_all(&place).with_context(|| format!("cannot remove `{}`", place.display()))?;
    checked
}

fn check_in(workspace: &Workspace, tarball: &Path, name: &str, place: &Path) -> anyhow::Result<()> {
    let mut tar = workspace.command("tar");
    workspace::run(
        tar.arg("--extract")
            .arg("--file")
            .arg(tarball)
            .arg("--directory")
            .arg(place),
    )?;
    let unpacked = place.join(name);
    workspace::run(&mut Command::new(unpacked.join(SCRIPT)))?;
    let program = |name: &str| -> PathBuf { unpacked.join("bin").join(name) };
    let linked = printed(Command::new("ldd").arg(program("zipper-worker")))?;
    let own = format!("=> {}", place.display());
    let finds_own = linked
        .lines()
        .filter(|line| line.trim_start().starts_with("libtorch_cpu.so"))
        .any(|line| line.contains(&own));
    if !finds_own {
        bail!("the worker does not find libtorch beside it: {linked}");
    }
    for name in PROGRAMS {
        let said = printed(
            Command::new(program(name))
                .arg("--version")
                .env_clear()
                .current_dir(place),
        )?;
        print!("dist: {said}");
    }
    let mut doctor = Command::new(program("zipper-launch"));
    doctor
        .arg("doctor")
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .current_dir(place);
    workspace::run(&mut doctor)
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::copy(from, to)
        .map(|_| ())
        .with_context(|| format!("cannot copy `{}` to `{}`", from.display(), to.display()))
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))
}
