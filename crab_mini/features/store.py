"""A growing array on disk whose rows are found by the content that they were made of.

    rows.f16      the rows, float16, one behind the other
    keys          a hash of 16 bytes for each row
    shape.json    the shape of a row

Rows are written before their keys, and a clip is listed (cache.py) after both. What is on disk is
cut to what is listed: after a kill or a full disk at any moment, also before the first list exists,
the next run goes on with what was complete. A file that cannot be understood counts as empty: all
of a cache can be made again. Unnoticed stays a flipped bit inside a row, which has no checksum.
"""

import contextlib
import hashlib
import json
import math
import os
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import CheckpointError, DataError
from ..files import write_whole

CHUNK = 256             # frames or seconds given to an encoder at a time
DIGEST = 16             # bytes of a hash


def digest(*parts: bytes) -> bytes:
    """A short hash of the parts, in their order."""
    made = hashlib.blake2b(digest_size=DIGEST)
    for part in parts:
        made.update(len(part).to_bytes(8, "little") + part)
    return made.digest()


@contextlib.contextmanager
def writing(path: Path):
    """Turns a failure to write (full disk, no permission) into a DataError that names the path."""
    try:
        yield
    except OSError as error:
        reason = f"cannot be written: {error.strerror or error}"
        raise DataError(path, "feature cache", reason) from error
    except CheckpointError as error:            # write_whole's, which names the file itself
        raise DataError(path, "feature cache", str(error)) from error


class Store:
    """Content hash -> row of a float16 array (N, ...) on disk."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.shape, self.mapped = folder, None, None
        self.place: dict[bytes, int] = {}
        self.count = 0              # rows on disk that have a key

    def reload(self) -> None:
        """Reads what is on disk; what is not whole is cut away. The caller holds the lock."""
        self.shape, self.mapped = read_shape(self.folder / "shape.json"), None
        rows, keys = self.folder / "rows.f16", self.folder / "keys"

        # Without a shape nobody knows what the rows are: nothing counts.
        whole = 0
        if self.shape and rows.is_file() and keys.is_file():
            whole = min(keys.stat().st_size // DIGEST, rows.stat().st_size // self.row_bytes())
        self.count = whole

        # A row without a key, a key without a row, and half of either are cut away.
        with writing(self.folder):
            for path, size in ((keys, DIGEST), (rows, self.row_bytes() if self.shape else 0)):
                if path.is_file() and path.stat().st_size != whole * size:
                    os.truncate(path, whole * size)
        content = keys.read_bytes() if whole else b""
        self.place = {content[i * DIGEST:(i + 1) * DIGEST]: i for i in range(whole)}

    def row_bytes(self) -> int:
        """Bytes of a row on disk."""
        return 2 * math.prod(self.shape)

    def add(self, pieces: Tensor, encode) -> Tensor:
        """Encodes those of the pieces (N, ...) that are new; returns every piece's row (N,).

        encode: (n, ...) -> (n, ...) features of any float type.
        """
        keys = []
        for piece in pieces:
            content = piece.contiguous().numpy().tobytes()
            keys.append(digest(str(tuple(piece.shape)).encode(), content))
        new = {key: i for i, key in enumerate(keys) if key not in self.place}
        starts = range(0, len(new), CHUNK)
        few = len(starts) < 8
        for start in tqdm(starts, desc=self.folder.name, unit="chunk", leave=False, disable=few):
            part = dict(list(new.items())[start:start + CHUNK])
            self.append(list(part), encode(pieces[list(part.values())]))
        return torch.tensor([self.place[key] for key in keys])

    def append(self, keys: list[bytes], features: Tensor) -> None:
        """Writes rows (n, ...) behind the others, then their keys."""
        rows = features.detach().to("cpu", torch.float16).contiguous()              # (n, ...)
        if not torch.isfinite(rows).all():
            raise ValueError("an encoder's features are not finite in half precision: they cannot "
                             "be cached")
        shape = tuple(rows.shape[1:])
        if self.shape not in (None, shape):
            raise DataError(self.folder / "shape.json", "feature cache",
                            f"damaged, delete this folder: expected {shape}, found {self.shape}")
        with writing(self.folder):
            if self.shape is None:
                self.shape = shape
                write_whole(self.folder / "shape.json", json.dumps(self.shape).encode())
            for name, data in (("rows.f16", rows.numpy().tobytes()), ("keys", b"".join(keys))):
                with open(self.folder / name, "ab") as file:
                    file.write(data)
        self.place |= {key: self.count + i for i, key in enumerate(keys)}
        self.count += len(keys)
        self.mapped = None

    def array(self) -> Tensor:
        """All rows, (N, ...) float16, mapped into memory: a page is read when it is used."""
        if self.mapped is None:
            numbers = self.count * self.row_bytes() // 2
            flat = torch.from_file(str(self.folder / "rows.f16"), shared=False, size=numbers,
                                   dtype=torch.float16)
            self.mapped = flat.view(self.count, *self.shape)
        return self.mapped


def read_shape(path: Path) -> tuple[int, ...] | None:
    """The shape of a row; None where the file is missing or does not hold one."""
    try:
        shape = json.loads(path.read_bytes()) if path.is_file() else None
    except (ValueError, RecursionError):
        return None
    usable = isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape)
    return tuple(shape) if usable else None


def read_lines(path: Path, usable) -> list[dict]:
    """The JSON lines for which `usable(line)` holds; all others are cut away from the file.

    Such are the half-written line of a killed run, and a line whose rows are lost. They must leave
    the file before new rows get the numbers that these lines name.
    """
    if not path.is_file():
        return []
    data, lines = path.read_bytes(), []
    for text in data.splitlines():
        try:
            line = json.loads(text)
            if usable(line):
                lines.append(line)
        except (ValueError, TypeError, LookupError, RecursionError):      # not as we write them
            pass
    if (content := as_text(lines)) != data:
        with writing(path):
            write_whole(path, content)
    return lines


def as_text(lines: list[dict]) -> bytes:
    """JSON lines as they stand in a file."""
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def append_lines(path: Path, lines: list[dict]) -> None:
    """Adds JSON lines to a file; DataError where that cannot be."""
    with writing(path), open(path, "ab") as file:
        file.write(as_text(lines))
