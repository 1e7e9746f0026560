"""Checkpoints: written whole or not at all, read only if they are intact and belong to this configuration.

A checkpoint is a dict of tensors and plain values: {"program", "version", "kind", "config", ...}. It is written beside
its final place, flushed to the disk and renamed, so a killed run or a full disk leaves the previous file as it was.
It is read with weights_only=True (no code is run), after every record's CRC has been compared: torch.load alone takes
flipped bits for weights.
    save(path, "text", config, step=10, module=...);  content = load(path, "text", config)
"""

import hashlib
import io
import json
import pickle
import zipfile
from pathlib import Path

import torch

from ..errors import CheckpointError
from ..files import one_line, write_whole

PROGRAM = "crab_mini"
VERSION = 1


def plain(config: dict) -> dict:
    """A configuration as JSON would give it back: only dicts, lists, numbers, strings."""
    return json.loads(json.dumps(config))


def fingerprint(config: dict) -> str:
    """Twelve hex digits that two configurations share only if they are equal."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


def save(path: Path, kind: str, config: dict, **content) -> None:
    """Writes a checkpoint of a kind (a stage's name), with its configuration and any tensors and plain values."""
    buffer = io.BytesIO()
    torch.save({"program": PROGRAM, "version": VERSION, "kind": kind, "config": plain(config), **content}, buffer)
    write_whole(Path(path), buffer.getbuffer())


def load(path: Path, kind: str, config: dict | None = None) -> dict:
    """A checkpoint's content, on the CPU.

    Raises CheckpointError if the file is missing, damaged, of another program, version or kind, or, where `config` is
    given, of another configuration (naming the first fields that differ).
    """
    content = _read(Path(path))
    if not isinstance(content, dict) or content.get("program") != PROGRAM:
        raise CheckpointError(f"{path}: is no checkpoint of {PROGRAM}")
    for field, expected in (("version", VERSION), ("kind", kind)):
        if content[field] != expected:
            raise CheckpointError(f"{path}: expected a checkpoint of {field} {expected}, found {content[field]}")
    if config is not None and content["config"] != plain(config):
        raise CheckpointError(f"{path}: was made with another configuration ("
                              f"{differences(content['config'], plain(config))})")
    return content


def _read(path: Path):
    with one_line(path, "read"):
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is None:
                return torch.load(path, map_location="cpu", weights_only=True)
        except (zipfile.BadZipFile, zipfile.LargeZipFile, pickle.UnpicklingError, RuntimeError, EOFError, ValueError,
                NotImplementedError) as error:
            raise CheckpointError(f"{path}: is damaged or no checkpoint") from error
    raise CheckpointError(f"{path}: is damaged (in {damaged})")


def differences(there: dict, here: dict, most: int = 3) -> str:
    """`lr: 0.1 there, 0.2 here` for the first fields in which two plain configurations differ."""
    old, new = _flat(there), _flat(here)
    names = [name for name in {**old, **new} if old.get(name, "nothing") != new.get(name, "nothing")]
    shown = [f"{name}: {old.get(name, 'nothing')} there, {new.get(name, 'nothing')} here" for name in names[:most]]
    return "; ".join(shown + [f"and {len(names) - most} more"] * (len(names) > most))


def _flat(config: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
