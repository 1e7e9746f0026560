"""What differs between a student's value and the expected one, in one line; and values and inputs
in a few words.

Types are looked at before values: an object that claims to be equal to everything is equal to
nothing here.
"""

import numpy as np
import torch
from torch import Tensor

NUMBERS_SHOWN = 12  # of a tensor; a larger one is described by its shape
CHARACTERS_SHOWN = 160  # of anything else


def difference(found, expected, tolerance: float) -> str | None:
    """None where `found` is as expected, else one line: where, what was expected, what was found.

    Tensors and arrays need the same shape and the same numbers within `tolerance` (relative and
    absolute). Lists and tuples may stand for each other. Sets, dicts, strings, None and booleans
    must be equal.
    """
    if isinstance(expected, Tensor):
        return tensor_difference(found, expected, tolerance)
    if isinstance(expected, np.ndarray):
        if not isinstance(found, (np.ndarray, list, tuple)):
            return f"expected an array of shape {expected.shape}, found {describe(found)}"
        return tensor_difference(
            torch.as_tensor(np.asarray(found)), torch.as_tensor(expected), tolerance
        )
    if isinstance(expected, (list, tuple)):
        return sequence_difference(found, expected, tolerance)
    if isinstance(expected, dict):
        if type(found) is not dict or set(found) != set(expected):
            return f"expected {describe(expected)}, found {describe(found)}"
        return sequence_difference(
            [found[key] for key in expected], list(expected.values()), tolerance
        )
    if is_number(expected):
        if not is_number(found) or not close(float(found), float(expected), tolerance):
            return f"expected {describe(expected)}, found {describe(found)}"
        return None
    if type(found) is not type(expected) or found != expected:
        return f"expected {describe(expected)}, found {describe(found)}"
    return None


def is_number(value) -> bool:
    """Whether a value is a plain number (not a boolean), also one of numpy's or a tensor without
    axes."""
    if isinstance(value, (Tensor, np.ndarray)):
        return value.ndim == 0 and value.dtype not in (torch.bool, np.bool_)
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def close(a: float, b: float, tolerance: float) -> bool:
    """Whether two numbers agree; NaN agrees with NaN."""
    return (a != a and b != b) or a == b or abs(a - b) <= tolerance * (1 + abs(b))


def tensor_difference(found, expected: Tensor, tolerance: float) -> str | None:
    """`difference` of two tensors: kind, shape, then the place where the numbers lie furthest
    apart."""
    if not isinstance(found, Tensor):
        return f"expected a tensor of shape {tuple(expected.shape)}, found {describe(found)}"
    if found.shape != expected.shape:
        return f"expected shape {tuple(expected.shape)}, found shape {tuple(found.shape)}"
    if (found.dtype == torch.bool) != (expected.dtype == torch.bool):
        return f"expected {expected.dtype}, found {found.dtype}"
    wide, wanted = found.detach().double(), expected.detach().double()
    apart = (wide - wanted).abs() - tolerance * wanted.abs()
    agree = (apart <= tolerance) | (wide == wanted) | (wide.isnan() & wanted.isnan())
    if bool(agree.all()):
        return None

    # The number that is furthest off is shown; NaN is as far off as anything can be.
    far = apart.masked_fill(agree, -torch.inf).nan_to_num(nan=torch.inf)
    place = [int(i) for i in np.unravel_index(int(far.argmax()), far.shape)] if far.ndim else []
    return (
        f"expected {wanted[tuple(place)].item():.5g} at {place}, "
        f"found {wide[tuple(place)].item():.5g}; "
        f"{int((~agree).sum())} of {agree.numel()} numbers differ"
    )


def sequence_difference(found, expected, tolerance: float) -> str | None:
    """`difference` of lists or tuples: their lengths, then the first entry that differs."""
    if type(found) not in (list, tuple) or len(found) != len(expected):
        return f"expected {describe(expected)}, found {describe(found)}"
    for k, (one, other) in enumerate(zip(found, expected)):
        text = difference(one, other, tolerance)
        if text is not None:
            return f"entry {k}: {text}"
    return None


def describe(value) -> str:
    """A value in a few words: small tensors with their numbers, large ones by shape."""
    if isinstance(value, (Tensor, np.ndarray)):
        tensor = torch.as_tensor(value).detach()
        if tensor.numel() > NUMBERS_SHOWN:
            return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
        return str(rounded(tensor.tolist()))
    if isinstance(value, (list, tuple)) and any(isinstance(v, (Tensor, np.ndarray)) for v in value):
        return "(" + ", ".join(describe(v) for v in value) + ")"
    if isinstance(value, torch.nn.Module):
        return type(value).__name__
    try:
        text = repr(rounded(value))
    except Exception as error:  # a student's object may not even print
        text = f"an object of {type(value).__name__} whose repr raises {type(error).__name__}"
    return text if len(text) <= CHARACTERS_SHOWN else f"{text[: CHARACTERS_SHOWN - 3]}..."


def rounded(value):
    """Numbers inside lists with five digits, everything else as it is."""
    if type(value) is float:
        return float(f"{value:.5g}")
    if type(value) in (list, tuple):
        return type(value)(rounded(v) for v in value)
    return value
