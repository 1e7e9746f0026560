"""Features on disk: encoded once, found again, never stale, and complete after a run that was killed."""

import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from crab_mini.av_uie.log_mel import fbank
from crab_mini.av_uie.rows import read_annotations
from crab_mini.av_uie.samples import decode
from crab_mini.errors import DataError
from crab_mini.features.cache import FeatureCache
from crab_mini.model.state_hash import weights_key

from . import small_av_uie as small


class Encoders:
    """Stand-ins: a few numbers that depend on all of the input; counts what they are given."""

    def __init__(self, stop_after: int | None = None):
        self.frames = self.seconds = 0
        self.stop_after = stop_after

    def see(self, frames):
        self.frames += len(frames)
        if self.stop_after is not None and self.frames > self.stop_after:
            raise KeyboardInterrupt
        return torch.stack([frames.float().mean((1, 2, 3)), frames[:, 0, 0, 0].float()], 1)[:, None] / 256   # (N,1,2)

    def hear(self, mels):
        self.seconds += len(mels)
        return mels.float().view(len(mels), 4, -1).pow(2).mean(2).sqrt()                                     # (N,4)


@pytest.fixture
def root(tmp_path) -> Path:
    return small.build(tmp_path / "data")


def cache_of(tmp_path, encoders, key="ab" * 16, size=16):
    return FeatureCache(tmp_path / "cache", key, encoders.see, encoders.hear, size)


def test_features_are_those_of_the_decoded_samples(root, tmp_path):
    encoders, rows = Encoders(), read_annotations(root, "train")
    cache = cache_of(tmp_path, encoders)
    for row, found in zip(rows, cache.prepare(rows, progress=False), strict=True):
        sample, plain = decode(row, 16), Encoders()
        assert found.uid == row.uid and found.target == sample.target
        assert torch.equal(cache.frames.array()[found.frames], plain.see(sample.frames).half())
        heard = plain.hear(fbank(sample.sounds.reshape(-1, 16000)).half()).half().view(*found.sounds.shape, 4)
        assert torch.equal(cache.sounds.array()[found.sounds], heard)


def test_what_is_the_same_is_encoded_once(root, tmp_path):
    encoders = Encoders()
    cache = cache_of(tmp_path, encoders)
    video = read_annotations(root, "train", ["ave", "avvp", "avqa", "avcap"])
    cache.prepare(video, progress=False)
    assert encoders.frames == 10 and len(cache.clips) == 2          # avqa looks at clips in a way of its own
    again = Encoders()
    rows = read_annotations(root, "train") + read_annotations(root, "test")
    cache_of(tmp_path, again).prepare(rows, progress=False)
    assert again.frames < 30 and again.seconds < 60                 # without a cache: 114 of each
    cache = cache_of(tmp_path, third := Encoders())
    for row, found in zip(rows, cache.prepare(rows, progress=False)):
        sample = decode(row, 16)
        assert (found.seconds, found.target) == (sample.seconds, sample.target)
        assert (found.masks is None) == (sample.masks is None)
        assert sample.masks is None or torch.equal(found.masks, sample.masks)
    assert third.frames == third.seconds == 0


def test_a_stale_cache_cannot_be_used(root, tmp_path):
    rows = read_annotations(root, "train", ["ave"])
    cache_of(tmp_path, Encoders()).prepare(rows, progress=False)
    small.tone(root / "ave/audio/a.wav", hertz=333)                 # the same size, the same name
    changed = Encoders()
    cache_of(tmp_path, changed).prepare(rows, progress=False)
    assert changed.seconds > 0 and changed.frames == 0              # the pictures are what they were
    for other in (dict(key="cd" * 16), dict(size=24)):
        fresh = Encoders()
        cache_of(tmp_path, fresh, **other).prepare(rows, progress=False)
        assert fresh.frames == 10
    state = {"a": torch.zeros(3), "b": torch.ones(2, 2, dtype=torch.bfloat16)}
    keys = {weights_key(state), weights_key(state | {"a": torch.tensor([0, 0, 1e-30])}), weights_key(state, "bf16"),
            weights_key({"c": state["a"], "b": state["b"]}), weights_key(state | {"b": torch.ones(4).bfloat16()})}
    assert len(keys) == 5 and weights_key(dict(reversed(state.items()))) == weights_key(state)


def test_a_label_that_outlasts_the_clip_is_found_with_a_warm_cache(root, tmp_path):
    small.strip(root / "ave/video/a.png", 7)
    rows = read_annotations(root, "train", ["ave"])
    cache_of(tmp_path, Encoders()).prepare(rows, progress=False)
    rows[0].fields["end_time"] = 9
    with pytest.raises(DataError, match="too short: 7 s, but the label names second 9"):
        cache_of(tmp_path, Encoders()).prepare(rows, progress=False)


def test_a_killed_run_goes_on(root, tmp_path):
    rows = read_annotations(root, "train")
    whole = cache_of(tmp_path / "whole", Encoders())
    expected = whole.prepare(rows, progress=False)
    part = cache_of(tmp_path, Encoders())
    part.prepare(rows[:3], progress=False)
    with pytest.raises(KeyboardInterrupt):
        cache_of(tmp_path, Encoders(stop_after=0)).prepare(rows, progress=False)
    for name in ("frames/rows.f16", "sounds/rows.f16", "frames/keys", "clips.jsonl"):       # half-written tails
        with open(part.folder / name, "ab") as file:
            file.write(b"\x01\x02\x03")
    cache = cache_of(tmp_path, encoders := Encoders())
    for row, found in zip(expected, cache.prepare(rows, progress=False), strict=True):
        assert torch.equal(cache.frames.array()[found.frames], whole.frames.array()[row.frames])
        assert torch.equal(cache.sounds.array()[found.sounds], whole.sounds.array()[row.sounds])
    assert 0 < encoders.frames < len(whole.frames.place)


def test_lost_rows_are_encoded_again(root, tmp_path):
    rows = read_annotations(root, "train", ["ave", "ms3"])
    cache = cache_of(tmp_path, Encoders())
    first = [cache.frames.array()[found.frames].clone() for found in cache.prepare(rows, progress=False)]
    path = cache.folder / "frames/rows.f16"
    path.write_bytes(path.read_bytes()[:-9])
    cache = cache_of(tmp_path, Encoders())
    for before, found in zip(first, cache.prepare(rows, progress=False)):
        assert torch.equal(cache.frames.array()[found.frames], before)
    (cache.folder / "frames/shape.json").write_text("[1,")
    cache = cache_of(tmp_path, Encoders())
    for before, found in zip(first, cache.prepare(rows, progress=False)):
        assert torch.equal(cache.frames.array()[found.frames], before)
    (cache.folder / "frames/shape.json").write_text("[1, 4]")
    with pytest.raises(DataError, match="shape.json: feature cache: damaged, delete this folder"):
        cache_of(tmp_path, Encoders()).prepare(read_annotations(root, "train"), progress=False)


class Killed(BaseException):
    """Ends a run where it stands: no `except` of the program catches it."""


def ending_at(number, how, monkeypatch):
    """The write of this number puts half of its bytes on the disk, and then `how` is raised."""
    real, count = open, iter(range(10 ** 6))

    def opened(path, mode="r", **more):
        file = real(path, mode, **more)
        if "b" not in mode or not set(mode) & set("wax"):
            return file
        write = file.write

        class Half:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def __getattr__(self, name):
                return getattr(file, name)

            def write(self, data):
                if next(count) != number:
                    return write(data)
                write(data[:len(data) // 2])
                file.flush()
                raise how

        return Half()
    for module in ("crab_mini.features.store", "crab_mini.files"):
        monkeypatch.setattr(f"{module}.open", opened, raising=False)
    return count


@pytest.mark.parametrize("how", [Killed(), OSError(28, "No space left on device")], ids=["killed", "full"])
def test_a_run_that_ended_inside_any_write_goes_on(root, tmp_path, monkeypatch, how):
    rows = read_annotations(root, "train", ["ave", "ms3"])
    whole = cache_of(tmp_path / "whole", Encoders())
    expected = whole.prepare(rows, progress=False)
    number = 0
    while True:
        with monkeypatch.context() as patch:
            count = ending_at(number, how, patch)
            try:
                cache_of(tmp_path / str(number), Encoders()).prepare(rows, progress=False)
            except (Killed, DataError) as error:
                assert isinstance(how, Killed) or "cannot be written: No space left" in str(error)
            if next(count) <= number:
                break                               # there are no more writes
        cache = cache_of(tmp_path / str(number), Encoders())
        for row, found in zip(expected, cache.prepare(rows, progress=False), strict=True):
            assert torch.equal(cache.frames.array()[found.frames], whole.frames.array()[row.frames])
            assert torch.equal(cache.sounds.array()[found.sounds], whole.sounds.array()[row.sounds])
        number += 1
    assert number > 8                               # two shapes, rows, keys, and the two lists


def test_a_clip_whose_rows_were_lost_is_never_read_from_others(root, tmp_path):
    """Its line leaves the list before new rows get the numbers that it names."""
    ave, ms3 = (read_annotations(root, "train", [task]) for task in ("ave", "ms3"))
    cache = cache_of(tmp_path, Encoders())
    found = cache.prepare(ave, progress=False)[0]
    expected = cache.frames.array()[found.frames].clone()
    for name in ("rows.f16", "keys"):
        (cache.folder / "frames" / name).write_bytes(b"")
    cache_of(tmp_path, Encoders()).prepare(ms3 + read_annotations(root, "train", ["avqa"]), progress=False)
    cache = cache_of(tmp_path, Encoders())
    found = cache.prepare(ave, progress=False)[0]
    assert torch.equal(cache.frames.array()[found.frames], expected)


@pytest.mark.parametrize("name", ["frames/shape.json", "frames/keys", "sounds/rows.f16", "clips.jsonl", "files.jsonl"])
@pytest.mark.parametrize("content", [None, b"", b"[", b"{}\n[]\n3\nnull\n", b"[" * 100000, bytes(4096),
                                     b'{"clip": 3, "frames": "x", "sounds": [7], "file": 1, "is": []}\n'])
def test_a_lost_or_foreign_file_of_the_cache_counts_as_empty(root, tmp_path, name, content):
    rows = read_annotations(root, "train", ["ave", "ms3"])
    cache = cache_of(tmp_path, Encoders())
    first = [cache.frames.array()[found.frames].clone() for found in cache.prepare(rows, progress=False)]
    if content is None:
        (cache.folder / name).unlink()
    else:
        (cache.folder / name).write_bytes(content)
    if name == "sounds/rows.f16" and content:
        return                                      # rows have no checksum: only their length can be seen
    cache = cache_of(tmp_path, Encoders())
    for before, found in zip(first, cache.prepare(rows, progress=False), strict=True):
        assert torch.equal(cache.frames.array()[found.frames], before)


def test_rows_are_mapped_not_loaded(root, tmp_path):
    cache = cache_of(tmp_path, Encoders())
    cache.prepare(read_annotations(root, "train", ["ave"]), progress=False)
    with open("/proc/self/maps") as maps:
        before = maps.read()
    array = cache.frames.array()
    with open("/proc/self/maps") as maps:
        rows = str(cache.folder / "frames/rows.f16")
        assert rows in maps.read() and rows not in before
    assert array.dtype == torch.float16 and array.shape == (10, 1, 2)
    assert cache.bytes_used() >= (cache.folder / "frames/rows.f16").stat().st_size == 10 * 2 * 2


def test_two_seconds_of_sound_are_two_rows(root, tmp_path):
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 60 * 16000)
    soundfile.write(root / "avqa/audio/a.wav", wave, 16000)
    small.strip(root / "avqa/video/a.png", 60)
    rows = read_annotations(root, "train", ["avqa"])
    cache = cache_of(tmp_path, Encoders())
    found = cache.prepare(rows, progress=False)[0]
    assert found.sounds.shape == (10, 2) and found.frames.shape == (10,)
    mel = fbank(decode(rows[0], 16).sounds[3:4, 16000:]).half()
    assert torch.equal(cache.sounds.array()[found.sounds[3, 1]], Encoders().hear(mel)[0].half())


def test_bad_samples_stop_or_are_left_out(root, tmp_path):
    (root / "ms3/AVS/v1m/u/audio.wav").write_bytes(b"RIFF")
    rows = read_annotations(root, "train")
    with pytest.raises(DataError, match="v1m/u/audio.wav: audio_path"):
        cache_of(tmp_path, Encoders()).prepare(rows, progress=False)
    problems = []
    found = cache_of(tmp_path, Encoders()).prepare(rows, problems, progress=False)
    assert len(found) == 8 and len(problems) == 1
    with pytest.raises(ValueError, match="not finite in half precision"):
        FeatureCache(tmp_path / "big", "k", lambda x: x.float().mean((1, 2, 3)) * 1e6, None, 16).prepare(
            read_annotations(root, "train", ["ave"]), progress=False)


def test_two_processes_share_the_work(root, tmp_path):
    rows, encoders, results = read_annotations(root, "train"), Encoders(), []

    def work():
        results.append(cache_of(tmp_path, encoders).prepare(rows, progress=False))
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3 and len({str([f.frames.tolist() for f in found]) for found in results}) == 1
    alone = cache_of(tmp_path / "alone", once := Encoders())
    alone.prepare(rows, progress=False)
    assert encoders.frames == once.frames and encoders.seconds == once.seconds
