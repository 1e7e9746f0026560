"""The frozen encoders run once: features of each frame and each second of sound, in half precision.

A folder holds two stores (`frames`, `sounds`) and a list of clips. A store is one growing float16
array, mapped into memory, and the hash of the content behind each of its rows: a picture that
serves five tasks is encoded once. The list of clips says which rows a clip's seconds are, by the
hash of its files' bytes: the next run does not even decode them. Unusual: the encoders' weights are
part of the folder's name, so features of other weights or changed files cannot be picked up. Rows
are written before they are listed: a killed run goes on where it stopped.

N rows of a store, T seconds, F log-mel frames.
"""

import hashlib
import json
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from ..av_uie.log_mel import fbank
from ..av_uie.resample import RATE
from ..av_uie.rows import Row
from ..av_uie.samples import (
    Sample,
    check_length,
    decode,
    media_files,
    own_second,
    sample_of,
    siblings,
)
from ..errors import DataError
from ..tasks.base import TASKS
from .store import DIGEST, Store, append_lines, digest, read_lines, writing

try:
    import fcntl
except ImportError:     # Windows, where training runs in one process
    fcntl = None

# Of the files below and of what `decode` makes of a clip: raise it when either changes.
FORMAT = 1
TOGETHER = 16           # clips decoded before their frames are encoded
DECODERS = 2            # threads that decode them: reading and unpacking files releases the GIL


class FeatureCache:
    """`cache.prepare(rows)` -> an encoded `Sample` for each row; the encoders run for what is new.

    encode_frames: frames (N,3,H,W) uint8 -> features (N,...).
    encode_sounds: log-mels of a second each, (N,F,128) float16 -> features (N,...).
    """

    def __init__(self, folder: str | Path, key: str, encode_frames, encode_sounds, image_size: int):
        """folder: given by the user. key: hash of the encoders. image_size: side in pixels."""
        self.folder, self.image_size = Path(folder) / key[:16], image_size
        self.encode_frames, self.encode_sounds = encode_frames, encode_sounds
        with writing(Path(folder)):
            self.frames, self.sounds = Store(self.folder / "frames"), Store(self.folder / "sounds")
        self.clips: dict[str, dict] = {}
        self.hashes: dict[str, list] = {}

    @contextmanager
    def alone(self):
        """One process writes at a time; the next finds its work done (data-parallel training)."""
        with writing(self.folder):
            lock = open(self.folder / "lock", "w")
        with lock:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)
            for store in (self.frames, self.sounds):
                store.reload()
            # A clip whose rows were lost (a killed run, a damaged file) is encoded again.
            lines = read_lines(self.folder / "clips.jsonl", self.has_rows)
            self.clips = {line["clip"]: line for line in lines}
            files = read_lines(self.folder / "files.jsonl", is_file_line)
            self.hashes = {line["file"]: line["is"] for line in files}
            yield

    def has_rows(self, line: dict) -> bool:
        """Whether a line of the list of clips names rows that are there; LookupError, TypeError
        where it is no such line.
        """
        seen, heard = line["frames"], [row for piece in line["sounds"] for row in piece]
        numbers = [line["target"], *line["seconds"], *seen, *heard]
        return (isinstance(line["clip"], str) and all(type(n) is int and n >= 0 for n in numbers)
                and max(seen, default=0) < self.frames.count
                and max(heard, default=0) < self.sounds.count)

    def prepare(self, rows: list[Row], problems: list[DataError] | None = None,
                progress: bool = True) -> list[Sample]:
        """Encoded samples of the rows; those that are new are decoded and encoded.

        problems: receives what cannot be used, which is left out; without it the first is raised.
        """
        samples = []
        bar = tqdm(total=len(rows), desc="features", unit="row", disable=not progress)
        with self.alone(), bar:
            for start in range(0, len(rows), TOGETHER):
                part = rows[start:start + TOGETHER]
                samples += self.prepare_part(part, problems)
                bar.update(len(part))
        return samples

    def prepare_part(self, rows: list[Row], problems: list[DataError] | None) -> list[Sample]:
        """`prepare` for the few rows whose decoded clips fit into memory together."""
        good = []                               # (clip's key, sample without media)
        new: dict[str, Sample] = {}             # decoded samples of clips that the cache has not
        with ThreadPoolExecutor(DECODERS) as pool:
            keys, ahead = self.decode_ahead(rows, pool)
            for row, key in zip(rows, keys):
                try:
                    if isinstance(key, DataError):
                        raise key
                    if key in self.clips:
                        clip = self.clips[key]
                        good.append((key, self.known(row, clip["seconds"], clip["target"])))
                        continue
                    if key in new:
                        good.append((key, self.known(row, new[key].seconds, new[key].target)))
                        continue
                    # Where the first row of a clip is broken (its mask, say), this one is decoded.
                    decoding = ahead.pop(key, None)
                    new[key] = decoding.result() if decoding else decode(row, self.image_size)
                    good.append((key, without_media(new[key])))
                except DataError as error:
                    if problems is None:
                        raise
                    problems.append(error)
        if new:
            self.encode(new)
        samples = []
        for key, sample in good:
            clip = self.clips[key]
            samples.append(replace(sample, frames=torch.tensor(clip["frames"]),         # (T,)
                                   sounds=torch.tensor(clip["sounds"])))                # (T,n)
        return samples

    def decode_ahead(self, rows: list[Row],
                     pool: ThreadPoolExecutor) -> tuple[list, dict[str, Future]]:
        """-> each row's clip key, or the DataError of its files; the decoding of each new clip."""
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

    def known(self, row: Row, seconds: list[int], target: int) -> Sample:
        """The sample of a clip that was decoded for another row: only its masks are read."""
        check_length(row, seconds)
        return sample_of(row, torch.empty(0), torch.empty(0), seconds, target, self.image_size)

    def encode(self, new: dict[str, Sample]) -> None:
        """Adds the clips' frames and seconds to the stores at once, and then lists the clips."""
        samples = list(new.values())
        counts = [len(sample.seconds) for sample in samples]
        pictures = torch.cat([sample.frames for sample in samples])             # (sum T,3,H,W)
        frames = self.frames.add(pictures, self.encode_frames)                  # (sum T,)

        # Each piece of sound is cut into its whole seconds.
        per_piece = [sample.sounds.shape[1] // RATE for sample in samples]
        seconds = torch.cat([sample.sounds.reshape(-1, RATE) for sample in samples])    # (N,S)
        sounds = self.sounds.add(fbank(seconds).half(), self.encode_sounds)             # (N,)

        lines = []
        sounds = sounds.split([count * n for count, n in zip(counts, per_piece)])
        frames = frames.split(counts)
        for key, sample, visual, audio, n in zip(new, samples, frames, sounds, per_piece):
            lines.append({"clip": key, "seconds": sample.seconds, "target": sample.target,
                          "frames": visual.tolist(), "sounds": audio.view(-1, n).tolist()})
        append_lines(self.folder / "clips.jsonl", lines)
        self.clips |= {line["clip"]: line for line in lines}

    def clip_key(self, row: Row) -> str:
        """Hash of the files' bytes and of what `decode` does with them for this row."""
        task = TASKS[row.task]
        if row.video is not None:
            facts = ["video", task.long_clips]
        else:
            facts = [task.frames, task.loose_pictures, own_second(row), list(siblings(row))]
        files = [self.file_hash(path) for path in media_files(row)]
        return digest(json.dumps([FORMAT, self.image_size, facts, files]).encode()).hex()

    def file_hash(self, path: Path) -> str:
        """Hash of a file's bytes, remembered while its size, times and inode stay the same."""
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
                append_lines(self.folder / "files.jsonl", [{"file": str(path), "is": known}])
        except OSError as error:
            reason = str(error.strerror) if path.exists() else "missing"
            raise DataError(path, "file", reason) from error
        return known[0]

    def bytes_used(self) -> int:
        """Size of the features on disk."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


def is_file_line(line: dict) -> bool:
    """Whether a line holds a file's name, its hash and four numbers of its state."""
    name, (made, *state) = line["file"], line["is"]
    return (isinstance(name, str) and isinstance(made, str) and len(state) == 4
            and all(type(number) is int for number in state))


def without_media(sample: Sample) -> Sample:
    """A sample without its frames and sound; its masks are copies.

    Without the copies small tensors would lie among big freed ones, and the memory of a decoder's
    thread could never be given back.
    """
    copies = {name: getattr(sample, name).clone() for name in ("masks", "class_map", "visible")
              if getattr(sample, name) is not None}
    return replace(sample, frames=torch.empty(0), sounds=torch.empty(0), **copies)
