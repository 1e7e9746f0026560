"""The frozen encoders run once: features of every frame and every second of sound, memory-mapped, in half precision.

A folder holds two stores (`see`, `hear`) and a list of clips. A store is one growing float16 array and the hash of the
content behind each of its rows: a picture that serves five tasks is encoded once. The list of clips says which rows a
clip's seconds are, by the hash of its files' bytes, so that the next run does not even decode them. Unusual: the
encoders' weights are part of the folder's name, so features of other weights or changed files cannot be picked up.
Rows are written before they are listed: a killed run goes on where it stopped. Shapes: N rows, T seconds, S samples.
"""

import hashlib
import json
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..av_uie.log_mel import fbank
from ..av_uie.resample import RATE
from ..av_uie.rows import (
    FRAMES,
    Row,
    Sample,
    check_length,
    decode,
    media_files,
    own_second,
    read_masks,
    siblings,
)
from ..errors import DataError

try:
    import fcntl
except ImportError:     # Windows, where training runs in one process
    fcntl = None

FORMAT = 1              # of the files below, and of what `decode` makes of a clip: raise it when either changes
CHUNK = 256             # frames or seconds given to an encoder at a time
TOGETHER = 16           # clips decoded before their frames are encoded
DECODERS = 2            # threads that decode them: reading and unpacking files leaves Python's lock
DIGEST = 16             # bytes of a hash


def digest(*parts: bytes) -> bytes:
    """A short hash of the parts, in their order."""
    made = hashlib.blake2b(digest_size=DIGEST)
    for part in parts:
        made.update(len(part).to_bytes(8, "little") + part)
    return made.digest()


class Store:
    """Content hash -> row of a float16 array (N, ...) on disk. Files: rows.f16, keys (16 bytes a row), shape.json."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.shape, self.mapped = folder, None, None
        self.place: dict[bytes, int] = {}

    def reload(self) -> None:
        """Reads what is on disk; rows that a killed run wrote but did not list are cut away. Needs the lock."""
        if not (self.folder / "shape.json").exists():
            return
        try:
            self.shape = tuple(json.loads((self.folder / "shape.json").read_text()))
            keys = (self.folder / "keys").read_bytes()
            count = min(len(keys) // DIGEST, (self.folder / "rows.f16").stat().st_size // self._row_bytes())
        except (OSError, ValueError, TypeError) as error:
            raise DataError(self.folder, "feature cache", f"damaged, delete this folder: {error}") from error
        for name, size in (("keys", DIGEST), ("rows.f16", self._row_bytes())):
            with open(self.folder / name, "r+b") as file:
                file.truncate(count * size)
        self.place = {keys[i * DIGEST:(i + 1) * DIGEST]: i for i in range(count)}
        self.mapped = None

    def _row_bytes(self) -> int:
        return 2 * int(np.prod(self.shape))

    def add(self, pieces: Tensor, encode) -> Tensor:
        """Encodes those of the pieces (N, ...) that are new; returns every piece's row (N,).

        encode: (n, ...) -> (n, ...) features of any float type.
        """
        keys = [digest(str(tuple(piece.shape)).encode(), piece.contiguous().numpy().tobytes()) for piece in pieces]
        new = {key: i for i, key in enumerate(keys) if key not in self.place}
        starts = range(0, len(new), CHUNK)
        for start in tqdm(starts, desc=self.folder.name, unit="chunk", leave=False, disable=len(starts) < 8):
            part = dict(list(new.items())[start:start + CHUNK])
            self._append(list(part), encode(pieces[list(part.values())]))
        return torch.tensor([self.place[key] for key in keys])

    def _append(self, keys: list[bytes], features: Tensor) -> None:
        rows = features.detach().to("cpu", torch.float16).contiguous()              # (n, ...)
        if not torch.isfinite(rows).all():
            raise ValueError("an encoder's features are not finite in half precision: they cannot be cached")
        try:
            if self.shape is None:
                self.shape = tuple(rows.shape[1:])
                (self.folder / "shape.json").write_text(json.dumps(self.shape))
            for name, data in (("rows.f16", rows.numpy().tobytes()), ("keys", b"".join(keys))):
                with open(self.folder / name, "ab") as file:
                    file.write(data)
        except OSError as error:
            raise DataError(self.folder, "feature cache", f"cannot be written: {error.strerror}") from error
        self.place |= {key: len(self.place) + i for i, key in enumerate(keys)}
        self.mapped = None

    def array(self) -> Tensor:
        """All rows, (N, ...) float16, mapped into memory: pages are read when they are used, and never written."""
        if self.mapped is None:
            count = len(self.place)
            flat = torch.from_file(str(self.folder / "rows.f16"), shared=False, size=count * self._row_bytes() // 2,
                                   dtype=torch.float16)
            self.mapped = flat.view(count, *self.shape)
        return self.mapped


@dataclass
class Cached:
    """A sample whose frames and sound are rows of the stores."""
    sample: Sample          # its frames and audio are empty
    frames: Tensor          # (T,) rows of see.array()
    sounds: Tensor          # (T, n) rows of hear.array(): n one-second pieces, two for AVQA's clips of more than 20 s


class FeatureCache:
    """`cache.prepare(rows)` -> a `Cached` for each row; encoders run for what is new.

    folder: given by the user; key: hash of the encoders; see: frames (N,3,H,W) uint8 -> (N,...); hear: log-mels of a second
    each, (N,F,128) float16 -> (N,...).
    """

    def __init__(self, folder: str | Path, key: str, see, hear, image_size: int):
        self.folder, self.encode_frames, self.encode_sounds = Path(folder) / key[:16], see, hear
        self.image_size = image_size
        try:
            self.see, self.hear = Store(self.folder / "see"), Store(self.folder / "hear")
        except OSError as error:
            raise DataError(folder, "feature cache", f"cannot be written: {error.strerror}") from error
        self.clips: dict[str, dict] = {}
        self.hashes: dict[str, list] = {}

    @contextmanager
    def alone(self):
        """One process writes at a time; the next one finds its work done (data-parallel training)."""
        with open(self.folder / "lock", "w") as lock:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)
            for store in (self.see, self.hear):
                store.reload()
            self.clips = {line["clip"]: line for line in _read_lines(self.folder / "clips.jsonl")
                          if max(line["frames"], default=0) < len(self.see.place)
                          and max(sum(line["sounds"], []), default=0) < len(self.hear.place)}
            self.hashes = {line["file"]: line["is"] for line in _read_lines(self.folder / "files.jsonl")}
            yield

    def prepare(self, rows: list[Row], problems: list[DataError] | None = None, progress: bool = True) -> list[Cached]:
        """Looks up every row, decoding and encoding those that are new.

        problems: receives what cannot be used, which is left out; without it the first is raised.
        """
        out = []
        with self.alone(), tqdm(total=len(rows), desc="features", unit="row", disable=not progress) as bar:
            for start in range(0, len(rows), TOGETHER):
                part = rows[start:start + TOGETHER]
                out += self._prepare(part, problems)
                bar.update(len(part))
        return out

    def _prepare(self, rows: list[Row], problems: list[DataError] | None) -> list[Cached]:
        good, new = [], {}
        with ThreadPoolExecutor(DECODERS) as pool:
            keys, ahead = self._decode_ahead(rows, pool)
            for row, key in zip(rows, keys):
                try:
                    if isinstance(key, DataError):
                        raise key
                    if key in self.clips or key in new:
                        good.append((key, self._known(row, self.clips.get(key) or new[key])))
                        continue
                    # The first row of a clip may have been broken (its mask, say): then this one is decoded here.
                    sample = ahead.pop(key).result() if key in ahead else decode(row, self.image_size)
                    new[key] = {"seconds": sample.seconds, "target": sample.target, "sample": sample}
                    good.append((key, _without_media(sample)))
                except DataError as error:
                    if problems is None:
                        raise
                    problems.append(error)
        if new:
            self._encode({key: clip["sample"] for key, clip in new.items()})
        return [Cached(sample, torch.tensor(self.clips[key]["frames"]), torch.tensor(self.clips[key]["sounds"]))
                for key, sample in good]

    def _decode_ahead(self, rows: list[Row], pool: ThreadPoolExecutor) -> tuple[list, dict[str, Future]]:
        """-> each row's clip key, or what is wrong with its files; and the first row of every new clip, being decoded."""
        keys, ahead = [], {}
        for row in rows:
            try:
                keys.append(self.clip_key(row))
            except DataError as error:
                keys.append(error)
                continue
            if keys[-1] not in self.clips and keys[-1] not in ahead:
                ahead[keys[-1]] = pool.submit(decode, row, self.image_size)
        return keys, ahead

    def _known(self, row: Row, clip: dict) -> Sample:
        """The sample of a clip whose features are there: only its masks are read."""
        check_length(row, clip["seconds"])
        masks, visible = read_masks(row, self.image_size)
        return Sample(row.task, row.uid, torch.empty(0), torch.empty(0), clip["seconds"], row.fields, clip["target"],
                      masks, visible, row.box)

    def _encode(self, new: dict[str, Sample]) -> None:
        """Adds the clips' frames and seconds to the stores, all at once, and then lists the clips."""
        samples = list(new.values())
        counts = [len(sample.seconds) for sample in samples]
        frames = self.see.add(torch.cat([sample.frames for sample in samples]), self.encode_frames)         # (sum T,)
        halves = [sample.audio.shape[1] // RATE for sample in samples]                       # seconds in each piece
        mels = fbank(torch.cat([sample.audio.reshape(-1, RATE) for sample in samples])).half()        # (sum n,F,128)
        sounds = self.hear.add(mels, self.encode_sounds)
        lines = []
        for key, sample, at, heard, half in zip(new, samples, frames.split(counts),
                                                sounds.split([n * h for n, h in zip(counts, halves)]), halves):
            lines.append({"clip": key, "seconds": sample.seconds, "target": sample.target, "frames": at.tolist(),
                          "sounds": heard.view(-1, half).tolist()})
        _append_lines(self.folder / "clips.jsonl", lines)
        self.clips |= {line["clip"]: line for line in lines}

    def clip_key(self, row: Row) -> str:
        """Hash of the files' bytes and of what `decode` does with them for this row."""
        if row.video is not None:
            facts = ["video", row.task == "avqa"]
        else:
            facts = [FRAMES[row.task], row.task == "arig", own_second(row), list(siblings(row))]
        files = [self.file_hash(path) for path in media_files(row)]
        return digest(json.dumps([FORMAT, self.image_size, facts, files]).encode()).hex()

    def file_hash(self, path: Path) -> str:
        """Hash of a file's bytes, remembered as long as its size, times and inode stay what they are."""
        try:
            stat = path.stat()
            state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
            known = self.hashes.get(str(path))
            if known is None or known[1:] != state:
                if not path.is_file():
                    raise DataError(path, "file", "not a regular file")
                made = hashlib.blake2b(digest_size=DIGEST)
                with open(path, "rb") as file:
                    while block := file.read(1 << 20):
                        made.update(block)
                known = [made.hexdigest(), *state]
                self.hashes[str(path)] = known
                _append_lines(self.folder / "files.jsonl", [{"file": str(path), "is": known}])
        except OSError as error:
            raise DataError(path, "file", "missing" if not path.exists() else str(error.strerror)) from error
        return known[0]

    def bytes_used(self) -> int:
        """Size of the features on disk."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


def _without_media(sample: Sample) -> Sample:
    """What a row keeps. Copies: small leftovers among big freed pieces would keep a decoder thread's memory from ever
    being given back."""
    return replace(sample, frames=torch.empty(0), audio=torch.empty(0),
                   masks=None if sample.masks is None else sample.masks.clone(),
                   visible=None if sample.visible is None else sample.visible.clone())


def _read_lines(path: Path) -> list[dict]:
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


def _append_lines(path: Path, lines: list[dict]) -> None:
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
    except OSError as error:
        raise DataError(path, "feature cache", f"cannot be written: {error.strerror}") from error
