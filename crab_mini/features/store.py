"""A growing array on disk whose rows are found by the content that they were made of.

    rows.f16      the rows, float16, one behind the other
    keys          a hash of 16 bytes for each row
    shape.json    the shape of a row

Rows are written before their keys: after a run that was killed the longer file is cut to the other.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import DataError

CHUNK = 256             # frames or seconds given to an encoder at a time
DIGEST = 16             # bytes of a hash


def digest(*parts: bytes) -> bytes:
    """A short hash of the parts, in their order."""
    made = hashlib.blake2b(digest_size=DIGEST)
    for part in parts:
        made.update(len(part).to_bytes(8, "little") + part)
    return made.digest()


class Store:
    """Content hash -> row of a float16 array (N, ...) on disk."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.shape, self.mapped = folder, None, None
        self.place: dict[bytes, int] = {}

    def reload(self) -> None:
        """Reads what is on disk; rows without a key are cut away. The caller holds the lock."""
        if not (self.folder / "shape.json").exists():
            return
        try:
            self.shape = tuple(json.loads((self.folder / "shape.json").read_text()))
            keys = (self.folder / "keys").read_bytes()
            size = (self.folder / "rows.f16").stat().st_size
            count = min(len(keys) // DIGEST, size // self.row_bytes())
        except (OSError, ValueError, TypeError) as error:
            reason = f"damaged, delete this folder: {error}"
            raise DataError(self.folder, "feature cache", reason) from error
        for name, size in (("keys", DIGEST), ("rows.f16", self.row_bytes())):
            with open(self.folder / name, "r+b") as file:
                file.truncate(count * size)
        self.place = {keys[i * DIGEST:(i + 1) * DIGEST]: i for i in range(count)}
        self.mapped = None

    def row_bytes(self) -> int:
        """Bytes of a row on disk."""
        return 2 * int(np.prod(self.shape))

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
        try:
            if self.shape is None:
                self.shape = tuple(rows.shape[1:])
                (self.folder / "shape.json").write_text(json.dumps(self.shape))
            for name, data in (("rows.f16", rows.numpy().tobytes()), ("keys", b"".join(keys))):
                with open(self.folder / name, "ab") as file:
                    file.write(data)
        except OSError as error:
            reason = f"cannot be written: {error.strerror}"
            raise DataError(self.folder, "feature cache", reason) from error
        self.place |= {key: len(self.place) + i for i, key in enumerate(keys)}
        self.mapped = None

    def array(self) -> Tensor:
        """All rows, (N, ...) float16, mapped into memory: a page is read when it is used."""
        if self.mapped is None:
            count = len(self.place)
            numbers = count * self.row_bytes() // 2
            flat = torch.from_file(str(self.folder / "rows.f16"), shared=False, size=numbers,
                                   dtype=torch.float16)
            self.mapped = flat.view(count, *self.shape)
        return self.mapped


def read_lines(path: Path) -> list[dict]:
    """JSON lines; the last one of a killed run may be cut off, and is left out (and cut away)."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[:data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        path.write_bytes(whole)
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise DataError(path, "feature cache", "damaged, delete this folder") from error


def append_lines(path: Path, lines: list[dict]) -> None:
    """Adds JSON lines to a file; DataError where that cannot be."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
    except OSError as error:
        raise DataError(path, "feature cache", f"cannot be written: {error.strerror}") from error
