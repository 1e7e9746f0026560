"""Checkpoints: intact or refused, in one line that names the file; whole or not written."""

import errno
import os
import random
import resource
import signal

import pytest
import torch

from crab_mini.errors import CheckpointError
from crab_mini.files import write_whole
from crab_mini.training.checkpoint import differences, fingerprint, load, plain, save

CONFIG = {"llm": {"dim": 192, "rope": (1, 2)}, "seed": 0}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "run" / "text.pt"
    save(path, "text", CONFIG, step=7, module={"w": torch.arange(600.0)})
    return path


def refused(path, match, **kwargs):
    with pytest.raises(CheckpointError, match=match) as found:
        load(path, "text", **kwargs)
    message = str(found.value)
    assert str(path) in message and "\n" not in message
    return message


def test_what_is_saved_is_loaded(path):
    content = load(path, "text", CONFIG)
    assert content["step"] == 7 and torch.equal(content["module"]["w"], torch.arange(600.0))
    assert [p.name for p in path.parent.iterdir()] == ["text.pt"]


def test_another_configuration_is_named_field_by_field(path):
    message = refused(path, "another configuration", config={"llm": {"dim": 128, "rope": (1, 2)}, "seed": 0})
    assert "llm.dim: 192 there, 128 here" in message and "rope" not in message


def test_another_kind_version_or_program_is_refused(path, monkeypatch):
    with pytest.raises(CheckpointError, match="of kind see, found text"):
        load(path, "see")
    monkeypatch.setattr("crab_mini.training.checkpoint.VERSION", 2)
    refused(path, "of version 2, found 1")
    torch.save({"w": torch.ones(1)}, path)
    refused(path, "no checkpoint of crab_mini")
    torch.save([1], path)
    refused(path, "no checkpoint of crab_mini")


def test_a_missing_or_foreign_file_is_refused(path):
    refused(path.parent / "none.pt", "No such file")
    refused(path.parent, "Is a directory")
    path.write_bytes(b"")
    refused(path, "damaged")
    path.write_text("not a checkpoint")
    refused(path, "damaged")


def test_code_in_a_checkpoint_is_not_run(path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(path.parent / "ran"),)

    torch.save({"program": "crab_mini", "version": 1, "kind": "text", "bomb": Bomb()}, path)
    refused(path, "damaged")
    assert not (path.parent / "ran").exists()


def test_a_cut_file_is_refused(path):
    data = path.read_bytes()
    for length in range(0, len(data), 97):
        path.write_bytes(data[:length])
        refused(path, "damaged")


def test_a_flipped_bit_is_refused_or_harmless(path):
    data, rng, refusals = path.read_bytes(), random.Random(0), 0
    for _ in range(300):
        place = rng.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1:])
        try:
            content = load(path, "text", CONFIG)
            assert content["step"] == 7 and torch.equal(content["module"]["w"], torch.arange(600.0))
        except CheckpointError:
            refusals += 1
    assert refusals > 150        # the tensor alone is 2400 of some 5000 bytes; the rest is alignment


def test_a_full_disk_leaves_the_previous_checkpoint(path):
    before = path.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limit[1]))
    try:
        with pytest.raises(CheckpointError, match="cannot be written: File too large") as found:
            save(path, "text", CONFIG, step=8, module={"w": torch.zeros(600)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert str(path) in str(found.value)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["text.pt"]


def test_data_reaches_the_disk_before_the_name(path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        write_whole(path, b"new")
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1


def test_a_place_that_cannot_be_written_is_named(path):
    with pytest.raises(CheckpointError, match="cannot be written") as found:
        write_whole(path / "inside.pt", b"x")       # a file where a folder should be
    assert "inside.pt" in str(found.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_is_named(path):
    path.parent.chmod(0o500)
    with pytest.raises(CheckpointError, match="Permission denied"):
        write_whole(path, b"x")


def test_fingerprints_and_differences():
    assert fingerprint(CONFIG) == fingerprint(plain(CONFIG)) != fingerprint(CONFIG | {"seed": 1})
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert differences({"a": 1}, {"a": 1, "b": 2}) == "b: nothing there, 2 here"
    many = differences(dict.fromkeys("abcde", 0), dict.fromkeys("abcde", 1))
    assert many == "a: 0 there, 1 here; b: 0 there, 1 here; c: 0 there, 1 here; and 2 more"
