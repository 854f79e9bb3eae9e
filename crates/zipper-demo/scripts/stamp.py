"""Marks finished outputs with the settings they were made with, so that finished work is kept and stale work redone."""

import hashlib
import json
import shutil
from pathlib import Path


def settings_of(*scripts, **values):
    """Everything an output depends on: the scripts' own text and named values."""
    digest = hashlib.sha256()
    for script in scripts:
        digest.update(Path(script).read_bytes())
    return json.dumps({"scripts": digest.hexdigest(), **values}, sort_keys=True)


def is_current(folder, settings):
    path = folder / ".stamp"
    return path.exists() and path.read_text() == settings


def start(folder):
    """An empty `folder`, without a stamp."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def finish(folder, settings):
    (folder / ".stamp").write_text(settings)
