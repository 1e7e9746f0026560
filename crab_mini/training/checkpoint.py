"""Checkpoints: written whole or not at all, read only if they are intact and of this configuration.

    save(path, "text", config, step=10, module=...);  content = load(path, "text", config)

A checkpoint is a dict of tensors and plain values: {"program", "version", "kind", "config", ...}.
It is written beside its final place, flushed to the disk and renamed. So a killed run or a full
disk leaves the previous file as it was. It is read with weights_only=True (no code is run), after
every record's CRC has been compared: torch.load alone takes flipped bits for weights.
"""

import hashlib
import io
import json
import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

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
    """Writes a checkpoint. kind: a stage's name. content: tensors and plain values."""
    buffer = io.BytesIO()
    head = {"program": PROGRAM, "version": VERSION, "kind": kind, "config": plain(config)}
    torch.save(head | content, buffer)
    write_whole(Path(path), buffer.getbuffer())


def load(path: Path, kind: str, config: dict | None = None) -> dict:
    """A checkpoint's content, on the CPU.

    Raises CheckpointError if the file is missing, damaged, of another program, version or kind, and
    with `config` also if it is of another configuration (naming the first fields that differ).
    """
    content = _read(Path(path))
    if not isinstance(content, dict) or content.get("program") != PROGRAM:
        raise CheckpointError(f"{path}: is no checkpoint of {PROGRAM}")
    for field, expected in (("version", VERSION), ("kind", kind)):
        if content[field] != expected:
            raise CheckpointError(f"{path}: expected a checkpoint of {field} {expected}, "
                                  f"found {content[field]}")
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
        except (zipfile.BadZipFile, zipfile.LargeZipFile, pickle.UnpicklingError, RuntimeError,
                EOFError, ValueError, NotImplementedError) as error:
            raise CheckpointError(f"{path}: is damaged or no checkpoint") from error
    raise CheckpointError(f"{path}: is damaged (in {damaged})")


def differences(there: dict, here: dict, most: int = 3) -> str:
    """`lr: 0.1 there, 0.2 here` for the first fields in which two plain configurations differ."""
    old, new = _flat(there), _flat(here)
    found = []
    for name in old | new:
        before, now = old.get(name, "nothing"), new.get(name, "nothing")
        if before != now:
            found.append(f"{name}: {before} there, {now} here")
    if len(found) > most:
        found[most:] = [f"and {len(found) - most} more"]
    return "; ".join(found)


def _flat(config: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def trained_tensors(module: nn.Module) -> dict[str, Tensor]:
    """What a stage changes in its module: trainable parameters, and buffers."""
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


def load_trained_tensors(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Writes saved tensors into the module; CheckpointError if names or shapes differ."""
    own = trained_tensors(module)
    for name in own | tensors:
        expected = list(own[name].shape) if name in own else "nothing"
        found = list(tensors[name].shape) if name in tensors else "nothing"
        if expected != found:
            raise CheckpointError(f"{path}: {name}: expected {expected}, found {found}")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])
