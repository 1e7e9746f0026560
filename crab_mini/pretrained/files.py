"""Published weight files as they lie on disk -> one dict of names and tensors.

    load_file("BEATs_iter3_plus_AS2M.pt")   {"cfg", "model"}: the tensors under "model"
    load_file("clip/pytorch_model.bin")     the tensors themselves
    load_file("llama")                      a folder: its index JSON and the shards it names, or
                                            its single file
`load_config` finds the configuration that belongs to such a file. No code in a file is run
(weights_only=True). A flipped bit in a published file cannot be noticed: neither format has a
checksum that is cheap to compare for gigabytes; the publisher's SHA-256 tells. Safetensors are read
with the library of that name, an optional extra: pip install -e ".[weights]".
"""

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import WeightsError

TORCH_SUFFIXES, WRAPPERS = (".pt", ".pth", ".bin"), ("model", "state_dict")
# What a folder may hold, in the order in which it is looked for.
IN_FOLDER = ("model.safetensors.index.json", "pytorch_model.bin.index.json", "model.safetensors",
             "pytorch_model.bin")


def _read_torch(path: Path):
    """The content of a file of torch.save, mapped into memory where its format allows it."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True,
                          mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError,
            AttributeError, TypeError) as error:
        raise WeightsError(f"{path}: expected a checkpoint of torch.save that holds only tensors "
                           f"and plain values, found none ({type(error).__name__})") from None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    # The library is optional, so it is imported where it is needed.
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file as read
    except ImportError:
        raise WeightsError(f"{path}: needs the library safetensors: "
                           "pip install -e '.[weights]'") from None
    try:
        return read(path)
    except (SafetensorError, OSError, ValueError, LookupError) as error:
        raise WeightsError(f"{path}: expected a safetensors file, found none "
                           f"({type(error).__name__})") from None


def _read_json(path: Path) -> dict:
    """The object of a JSON file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: expected a JSON file, found none "
                           f"({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _read_shards(index: Path) -> dict[str, Tensor]:
    """All tensors of an index JSON {"weight_map": {name: file beside it}}."""
    where = _read_json(index).get("weight_map")
    usable = isinstance(where, dict) and where and all(isinstance(f, str) for f in where.values())
    if not usable:
        raise WeightsError(f"{index}: expected 'weight_map' with a file for every tensor, "
                           "found none")
    # Index and shards must agree both ways: no tensor elsewhere than the index says, none missing.
    state = {}
    for name in sorted(set(where.values())):
        shard = load_file(_shard(index, name))
        for key in shard:
            if where.get(key) != name:
                raise WeightsError(f"{index}: {key}: expected in {where.get(key, 'no shard')}, "
                                   f"found in {name}")
        state |= shard
    for key, name in where.items():
        if key not in state:
            raise WeightsError(f"{index}: {key}: expected in {name}, found nothing")
    return state


def _shard(index: Path, name: str) -> Path:
    """A shard that an index names; WeightsError unless it is a weight file beside the index.

    A link may lead within the folder, or to the `blobs` of the download cache in whose `snapshots`
    the folder is. An index that names an index could name itself.
    """
    shard, folder = index.parent / name, index.parent.resolve()
    if Path(name).name != name or shard.suffix not in (*TORCH_SUFFIXES, ".safetensors"):
        raise WeightsError(f"{index}: expected weight files beside the index, found '{name[:80]}'")
    try:
        real, regular = shard.resolve(), shard.is_file()
    except (OSError, RuntimeError):         # a name too long, a link in a circle
        regular = False
    if not regular:
        raise WeightsError(f"{index}: expected a file '{name[:80]}' beside it, found none")
    cached = folder.parent.name == "snapshots" and real.parent == folder.parents[1] / "blobs"
    if not (real.is_relative_to(folder) or cached):
        raise WeightsError(f"{index}: expected '{name[:80]}' beside it, found a link that leads "
                           "elsewhere")
    return shard


def _file_in(folder: Path) -> Path:
    """The weight file or index of a folder."""
    for name in IN_FOLDER:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(f"{folder}: expected one of {', '.join(IN_FOLDER)}, found none of them")


def load_file(path: str | Path) -> dict[str, Tensor]:
    """A weight file, an index JSON or a folder with one of them -> {name: tensor}.

    Weight files end in .pt, .pth, .bin or .safetensors. Tensors stay in the file's dtype, on the
    CPU. Raises WeightsError for a file that is missing, cut short, of another kind, or holds
    anything but tensors where the weights should be.
    """
    path = Path(path)
    if path.is_dir():
        path = _file_in(path)
    if not path.is_file():
        raise WeightsError(f"{path}: expected a file, found none")
    if path.suffix == ".json":
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix not in TORCH_SUFFIXES:
        raise WeightsError(f"{path}: expected a name ending in {', '.join(TORCH_SUFFIXES)}, "
                           f".safetensors or .json, found '{path.name}'")
    # Training scripts often save the state dict inside another one.
    content = _read_torch(path)
    for name in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path}: expected names and tensors, found {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(f"{path}: {name}: expected a tensor, found {type(value).__name__}")
    return dict(content)


def load_config(path: str | Path) -> dict:
    """The published configuration of a weight file or folder.

    That is "cfg" inside the file (BEATs), or config.json beside it or in the folder.
    Raises WeightsError where there is neither.
    """
    path = Path(path)
    beside = (path if path.is_dir() else path.parent) / "config.json"
    if path.is_file() and path.suffix in TORCH_SUFFIXES:
        content = _read_torch(path)
        if isinstance(content, Mapping) and isinstance(content.get("cfg"), Mapping):
            return dict(content["cfg"])
    if not beside.is_file():
        raise WeightsError(f"{path}: expected its configuration as 'cfg' inside or in "
                           f"{beside.name} beside it, found none")
    return _read_json(beside)
