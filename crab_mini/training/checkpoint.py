"""Checkpoints: written whole or not at all, read only if they are intact and of this configuration.

    save(path, "text", config, step=10, module=...);  content = load(path, "text", config)

A checkpoint is a dict of tensors and plain values: {"program", "version", "kind", "config", ...}.
It is written beside its final place, flushed to the disk and renamed. So a killed run or a full
disk leaves the previous file as it was. It is read with weights_only=True (no code is run), after
every record's CRC has been compared: torch.load alone takes flipped bits for weights. Records are
stored, never compressed, so a file cannot take more memory than it has on the disk. What the
fields must be is in schema.py: an intact file can hold anything.
"""

import hashlib
import io
import json
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..files import one_line, write_whole
from .schema import DICT, Rule, expect, expect_alike

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


def load(path: Path, kind: str, config: dict | None = None,
         fields: dict[str, Rule] | None = None) -> dict:
    """A checkpoint's content, on the CPU.

    fields: what it must hold beside its head. Raises CheckpointError if the file is missing,
    damaged, no regular file, of another program, version or kind, lacks a field, and with `config`
    also if it is of another configuration (naming the first fields that differ).
    """
    path = Path(path)
    content = _read(path)
    if not isinstance(content, dict) or content.get("program") != PROGRAM:
        raise CheckpointError(f"{path}: is no checkpoint of {PROGRAM}")
    for field, expected in (("version", VERSION), ("kind", kind)):
        found = content.get(field, "none")
        if type(found) is not type(expected) or found != expected:
            raise CheckpointError(f"{path}: expected a checkpoint of {field} {expected}, "
                                  f"found {_short(found)}")
    expect(path, content, {"config": DICT} | (fields or {}))
    if config is not None and content["config"] != plain(config):
        raise CheckpointError(f"{path}: was made with another configuration ("
                              f"{differences(content['config'], plain(config))})")
    return content


def _read(path: Path):
    """The content of a file of torch.save whose records are all as they were written."""
    with one_line(path, "read"):
        # A pipe would be waited for, and a device never ends. A folder fails in `open`.
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise CheckpointError(f"{path}: is no regular file")
        try:
            with zipfile.ZipFile(path) as archive:
                records, size = archive.infolist(), path.stat().st_size
                stored = all(record.compress_type == zipfile.ZIP_STORED for record in records)
                if not stored or sum(record.file_size for record in records) > size:
                    raise CheckpointError(f"{path}: is damaged or no checkpoint (records are "
                                          "larger than the file)")
                damaged = archive.testzip()
            if damaged is None:
                return torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, CheckpointError):
            raise
        except Exception as error:      # what zipfile and torch make of bytes from anywhere
            raise CheckpointError(f"{path}: is damaged or no checkpoint") from error
    raise CheckpointError(f"{path}: is damaged (in {_short(damaged)})")


def _short(value) -> str:
    """A value from a file as part of one line."""
    return " ".join(str(value).split())[:60]


def differences(there: dict, here: dict, most: int = 3) -> str:
    """`lr: 0.1 there, 0.2 here` for the first fields in which two plain configurations differ."""
    old, new = _flat(there), _flat(here)
    found = []
    for name in old | new:
        before, now = old.get(name, "nothing"), new.get(name, "nothing")
        if before != now:
            found.append(f"{_short(name)}: {_short(before)} there, {_short(now)} here")
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
    expect_alike(path, "", own, tensors)
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])
