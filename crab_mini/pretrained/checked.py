"""A published state dict into a module of ours, with every name, shape and number checked first.

Nothing loads partially: all is checked before anything is kept, and whatever does not fit is one
WeightsError that names the function, the parameter or field, what was expected and what was found.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn as nn
from torch import Tensor

from ..errors import WeightsError


def published_name(name: str, table: Mapping[str, str]) -> str:
    """One of our parameter names -> the published one."""
    return ".".join(table.get(part, part) for part in name.split("."))


def found_text(value) -> str:
    """What a state dict holds under a name, for messages."""
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def shared_prefix(names: Iterable[str], state: Mapping[str, Tensor]) -> tuple[str, int]:
    """What stands before most of `names` in the state dict, and before how many of them.

    Such as "vision_model.", or "".
    """
    # Each key that ends in a known name votes for what it has before that name.
    known, votes = set(names), Counter({"": 0})
    for key in state:
        parts = key.split(".")
        votes.update(".".join([*parts[:i], ""]) for i in range(len(parts))
                     if ".".join(parts[i:]) in known)
    return max(votes.items(), key=lambda item: (item[1], -len(item[0])))


def take(call: str, shapes: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor],
         spare: str) -> dict[str, Tensor]:
    """Exactly the named tensors of a state dict, as fp32 copies, after all of it was checked.

    call: the function's name, for messages. shapes: published name -> shape. A prefix that all
    names share is allowed. spare: regular expression of names that may be there and are not needed.
    Raises WeightsError that names the first parameter that is missing, unexpected, no
    floating-point tensor or of another shape.
    """
    state = {key: value for key, value in state.items() if not re.fullmatch(spare, key)}
    prefix, _ = shared_prefix(shapes, state)

    # All that is wanted must be there ...
    for name, shape in shapes.items():
        found, place = state.get(prefix + name), f"{call}: {prefix}{name}"
        if found is None:
            raise WeightsError(f"{place}: expected shape {tuple(shape)}, found nothing")
        if not isinstance(found, Tensor) or found.shape != shape:
            raise WeightsError(f"{place}: expected shape {tuple(shape)}, found {found_text(found)}")
        if not found.is_floating_point():
            raise WeightsError(f"{place}: expected floating-point numbers, found {found.dtype}")

    # ... and all that is there must be wanted.
    wanted = {prefix + name for name in shapes}
    for key, value in state.items():
        if key not in wanted:
            raise WeightsError(f"{call}: {key}: expected no tensor of this name, "
                               f"found {found_text(value)}")
    return {name: state[prefix + name].detach().to(torch.float32, copy=True) for name in shapes}


def load(call: str, build: Callable[[], nn.Module], tables: tuple[Mapping[str, str], ...],
         state: Mapping[str, Tensor], spare: str,
         copies: Mapping[str, str] | None = None) -> nn.Module:
    """The module of `build` with published weights, in eval mode.

    See `take` for the checks and what they raise. tables: our names -> published ones, in the
    spellings in use; the one that finds most names is taken. copies: published names of tensors
    that repeat another -> that other one. A ValueError of `build` is the configuration's.
    """
    # On the meta device: no memory and no random numbers for what is replaced anyway.
    try:
        with torch.device("meta"):
            module = build()
    except (ValueError, RuntimeError, OverflowError) as error:      # sizes that do not fit or exist
        raise WeightsError(f"{call}: config: {str(error).splitlines()[0]}") from None

    # The shapes that this module has, under the names that the file uses.
    own, copies = module.state_dict(), copies or {}
    spellings = [{name: published_name(name, table) for name in own} for table in tables]
    names = max(spellings, key=lambda names: shared_prefix(names.values(), state)[1])
    shapes = {names[ours]: value.shape for ours, value in own.items()}
    shapes |= {copy: shapes[first] for copy, first in copies.items()}
    tensors = take(call, shapes, state, spare)
    for copy, first in copies.items():
        if not torch.equal(tensors[copy], tensors[first]):
            raise WeightsError(f"{call}: {copy}: expected the same numbers as {first}, "
                               "found others")
    module.load_state_dict({ours: tensors[name] for ours, name in names.items()}, assign=True)
    return module.eval()


def number(call: str, config: Mapping, name: str, kind: type = int, default=None):
    """A number of the configuration.

    WeightsError if it is not above 0, of another type, or absent without default.
    """
    value = default if config.get(name) is None else config[name]
    if isinstance(value, bool) or not isinstance(value, (int, kind)) or value <= 0:
        found = repr(config[name]) if name in config else "nothing"
        raise WeightsError(f"{call}: config '{name}': expected {kind.__name__} above 0, "
                           f"found {found}")
    return kind(value)


def layers_of(call: str, config: Mapping, name: str, state: Mapping) -> int:
    """The number of layers; WeightsError for more than the file has tensors.

    Each layer has some, so building an outline takes no longer than the file is large.
    """
    layers = number(call, config, name)
    if layers > len(state):
        raise WeightsError(f"{call}: config '{name}': expected at most the {len(state)} tensors of "
                           f"the file, found {layers}")
    return layers


def section(call: str, config: Mapping, name: str) -> Mapping:
    """A section of the configuration, empty where it is absent or null."""
    value = config.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise WeightsError(f"{call}: config '{name}': expected fields, "
                           f"found {type(value).__name__}")
    return value or {}


def require(call: str, config: Mapping, **needed) -> None:
    """WeightsError where the configuration asks for another architecture.

    A field that is absent or null asks for nothing.
    """
    for name, value in needed.items():
        if config.get(name) is not None and config[name] != value:
            raise WeightsError(f"{call}: config '{name}': expected {value!r}, "
                               f"found {config[name]!r}")


def two_numbers(call: str, config: Mapping, name: str) -> tuple[int, int]:
    """Two whole numbers above 0 of the configuration; WeightsError if it holds anything else."""
    value = config.get(name)
    pair = isinstance(value, (list, tuple)) and len(value) == 2
    if not pair or not all(type(part) is int and part > 0 for part in value):
        raise WeightsError(f"{call}: config '{name}': expected two whole numbers, found {value!r}")
    return tuple(value)
