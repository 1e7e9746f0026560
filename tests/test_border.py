"""The border of a data set: no file outside it, no pipe, no bomb, no device is opened or replaced; each is one line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from crab_mini.av_uie.__main__ import main as look
from crab_mini.av_uie.check import check
from crab_mini.av_uie.media import read_audio
from crab_mini.av_uie.resample import resample
from crab_mini.av_uie.rows import read_annotations
from crab_mini.errors import CheckpointError, DataError
from crab_mini.features.rows import usable
from crab_mini.files import must_be_writable, write_result, write_whole
from crab_mini.world.clips import Clips, index_of
from crab_mini.world.write import write

from . import small_av_uie as small

HOME = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A few clips of the world; never changed."""
    write(tmp_path_factory.mktemp("border") / "world", 9, 12, 32, cap=1, workers=1)
    return tmp_path_factory.getbasetemp() / "border0/world"


@pytest.fixture
def masters(world, tmp_path) -> Path:
    """The masters alone, to damage: clips.json, classes.json and clips/."""
    root = tmp_path / "data"
    shutil.copytree(world / "clips", root / "clips")
    for name in ("clips.json", "classes.json"):
        shutil.copy(world / name, root / name)
    return root


def changed(root: Path, **keys) -> None:
    """Sets keys of clips.json; ... deletes one."""
    index = json.loads((root / "clips.json").read_text()) | keys
    (root / "clips.json").write_text(json.dumps({k: v for k, v in index.items() if v is not ...}))


def swapped(root: Path, vid: str) -> None:
    """Another name for the first clip."""
    clips = json.loads((root / "clips.json").read_text())["clips"]
    first, *others = clips.items()
    changed(root, clips=dict([(vid, first[1]), *others]))


FLAC, PNG, LABELS = "clips/train_00000.flac", "clips/train_00000.png", "clips/train_00000.labels.png"


def link_out(root: Path) -> None:
    shutil.copy(root / PNG, root.parent / "outside.png")
    (root / PNG).unlink()
    (root / PNG).symlink_to(root.parent / "outside.png")


def pipe(name: str):
    return lambda root: ((root / name).unlink(), os.mkfifo(root / name))


DAMAGES = {     # name: (what is done to the folder, what the line says)
    "parent": (lambda root: swapped(root, "train_/../../x"), "clips.json: clips: expected names such as"),
    "link": (link_out, "train_00000.png: clips: 'train_00000.png' leads outside the data folder"),
    "pipe": (pipe(FLAC), "train_00000.flac: clips: not a regular file"),
    "pipe index": (pipe("clips.json"), "clips.json: file: not a regular file"),
    "pipe classes": (pipe("classes.json"), "classes.json: file: not a regular file"),
    "gone": (lambda root: (root / FLAC).unlink(), "train_00000.flac: clips: missing"),
    "cut": (lambda root: (root / FLAC).write_bytes((root / FLAC).read_bytes()[:9000]), "train_00000.flac: clips: "),
    "half": (lambda root: soundfile.write(root / FLAC, np.full(80000, 0.1), 16000), "expected 10 s of sound, found 5.00"),
    "small": (lambda root: Image.new("RGB", (16, 160)).save(root / PNG), "expected a strip of 32x320 pixels"),
    "grey": (lambda root: Image.new("L", (32, 320)).save(root / PNG), "in mode RGB, found 32x320 in L"),
    "label": (lambda root: Image.new("L", (32, 320), 3).save(root / LABELS), "number 3 is of no thing in the scene"),
    "no image": (lambda root: changed(root, image=...), "clips.json: image: expected a whole number"),
    "huge image": (lambda root: changed(root, image=10 ** 6), "clips.json: image: expected a whole number"),
    "no clips": (lambda root: changed(root, clips={}), "clips.json: clips: expected an object with clips"),
    "seed": (lambda root: changed(root, clips={"train_00000": {"boxes": []}}), "clips.train_00000: expected a seed"),
    "boxes": (lambda root: changed(root, clips={"train_00000": {"seed": 0, "boxes": [[0.5]]}}), "train_00000.boxes"),
    "empty categories": (lambda root: changed(root, categories=[]), "categories: expected a list of names"),
    "foreign": (lambda root: changed(root, categories=["a", "b", "c", "d", "e"]), "categories: not those of classes"),
    "nested": (lambda root: (root / "clips.json").write_text("[" * 100000), "clips.json: file: no valid JSON"),
    "digits": (lambda root: (root / "clips.json").write_text("{\"image\": " + "9" * 5000 + "}"), "no valid JSON"),
    "unfinished": (lambda root: (root / "clips.json").unlink(), "its rendering was stopped"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_master_is_one_line_in_check_and_in_training(masters, capsys, name):
    damage, line = DAMAGES[name]
    damage(masters)
    signal.alarm(60)                            # a pipe must not be waited for
    try:
        assert look(["check", str(masters)]) == 1
        out = capsys.readouterr().out
        assert line in out and "Traceback" not in out
        with pytest.raises(DataError) as caught:
            Clips(masters, "train")
        assert "\n" not in str(caught.value)
        assert line in str(caught.value) or name == "unfinished"
    finally:
        signal.alarm(0)


def test_whole_masters_are_read_and_counted(world, capsys):
    assert look(["check", str(world)]) == 0 and len(Clips(world, "test")) == 12
    assert "clips    train        9 of       9 samples complete" in capsys.readouterr().out


def test_an_output_follows_links_and_replaces_no_special_file(tmp_path, capfdbinary):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "to_pipe").symlink_to("pipe")
    for name in ("pipe", "to_pipe", "loop", "/dev/null", "."):
        for function in (must_be_writable, lambda path: write_whole(path, b"x"), lambda path: write_result(path, b"x")):
            with pytest.raises(CheckpointError, match="cannot be written: (not a regular|a link that|is a folder)"):
                function(tmp_path / name)
    assert (tmp_path / "pipe").is_fifo() and Path("/dev/null").is_char_device()
    os.mkfifo(tmp_path / "real.part")           # what lies where the part is written is not waited for
    write_whole(tmp_path / "real", b"newer")
    assert (tmp_path / "real").read_text() == "newer" and not (tmp_path / "real.part").exists()
    write_result(Path("-"), b"bytes")
    assert capfdbinary.readouterr().out == b"bytes"


def test_a_sound_that_asks_for_too_much_is_refused_before_it_is_decoded(tmp_path):
    with soundfile.SoundFile(tmp_path / "bomb.flac", "w", 384000, 8) as file:
        for _ in range(22):
            file.write(np.full((384000, 8), 0.25, np.float32))
    assert (tmp_path / "bomb.flac").stat().st_size < 1 << 20
    began = time.process_time()
    with pytest.raises(DataError, match="bomb.flac: audio: too large: 8448000 samples in 8 channels, at most 64000000"):
        read_audio(tmp_path / "bomb.flac")
    assert time.process_time() - began < 1
    soundfile.write(tmp_path / "odd.wav", np.full(1000, 0.1), 383999)
    with pytest.raises(DataError, match="odd.wav: audio: 383999 Hz, 1 channels: not a recording"):
        read_audio(tmp_path / "odd.wav")


def test_a_sound_in_blocks_has_the_bits_of_one_that_is_read_at_once(tmp_path):
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, (44100 * 30, 3)).astype(np.float32)     # four blocks
    soundfile.write(tmp_path / "a.wav", wave, 44100, subtype="FLOAT")
    assert torch.equal(read_audio(tmp_path / "a.wav"), resample(torch.from_numpy(wave.mean(1)), 44100))


@pytest.mark.parametrize("rate", [44099, 44100, 48000])
def test_a_long_sound_is_resampled_as_its_part_is(rate, monkeypatch):
    from crab_mini.av_uie import resample as module
    wave = torch.rand(rate * 4) - 0.5
    whole = resample(wave, rate)
    monkeypatch.setattr(module, "COMMON_OUTPUTS", 0)
    monkeypatch.setattr(module, "BLOCK", rate)          # four blocks, and the other way to filter
    assert torch.allclose(module.resample(wave, rate), whole, atol=2e-6)


def test_huge_samples_are_refused_at_the_border_and_can_be_skipped(tmp_path):
    root = small.build(tmp_path / "data")
    soundfile.write(root / "avcap/audio/a.wav", np.full(160000, 1e30, np.float32), 16000, subtype="FLOAT")
    with pytest.raises(DataError, match=r"a.wav: audio_path: too loud: expected samples from -1 to 1, found 1e\+30"):
        usable(root, ("train",), ["avcap", "ave"], None)
    problems = []
    usable(root, ("train",), ["avcap", "ave"], problems)
    assert len(problems) == 1


BAD = {         # name: (file, its new content or a change of the annotation, what the line says)
    "marks": ("avcap/train.json", dict(label_content="a <visual> b"), "label_content: expected no '<visual>'"),
    "question": ("avqa/train.json", dict(question="<audio> what?"), "question: expected no '<audio>'"),
    "description": ("ref_avs/train.json", dict(description="<answer_begins>"), "description: expected no '<answer_"),
    "half a group": ("s4/train.json", dict(label_content="It is <mask_0>"), "label_content: expected 1 whole group"),
    "a_obj": ("avss/train.json", dict(a_obj="unicorn"), "a_obj: 'unicorn' is none of the 71"),
    "a_obj not shown": ("avss/train.json", dict(a_obj="bird, dog"), "3.png: mask: shows no dog"),
    "digits": ("ave/train.json", dict(label_content=f"<event> Bell </event> <range> {'2' * 5000},6 </range>"),
               "label_content: mislabelled: the range 222222222,6 is not 2,6"),
    "class list": ("classes.json", "[\"background\", 3]", "classes.json: class names: 3 cannot name a class"),
    "no class": ("classes.json", "[]", "classes.json: class names: expected a list of names"),
    "too few classes": ("classes.json", json.dumps(["background", "bird", "emergency-car"]), "3.png: mask: class 22"),
    "nested classes": ("classes.json", "[" * 99999, "classes.json: file: no valid JSON"),
    "not a list": ("classes.json", "{}", "classes.json: file: expected a JSON list of class names, found dict"),
}


@pytest.mark.parametrize("name", BAD)
def test_check_names_what_training_refuses(tmp_path, name):
    root = small.build(tmp_path / "data")
    file, content, line = BAD[name]
    if isinstance(content, dict):
        content = json.dumps([json.loads((root / file).read_text())[0] | content])
    (root / file).write_text(content)
    assert any(line in str(error) for _, _, error in check(root, progress=False).problems)
    task = file.partition("/")[0] if "/" in file else "avss"
    with pytest.raises(DataError) as caught:
        usable(root, ("train",), [task], None)
    assert line in str(caught.value)


def test_an_empty_mask_of_s4_is_refused_and_one_of_ms3_is_not(tmp_path):
    root = small.build(tmp_path / "data")
    for path in ("s4/AVS/v1s/u/labels_semantic/3.png", "ms3/AVS/v1m/u/labels_semantic/3.png"):
        Image.new("L", (24, 24)).save(root / path)
    lines = [str(error) for _, _, error in check(root, progress=False).problems]
    assert len(lines) == 2 and all("s4/AVS/v1s/u/labels_semantic/3.png: mask: empty" in line for line in lines)


def test_a_folder_whose_rendering_was_stopped_is_no_data_folder(tmp_path):
    root = small.build(tmp_path / "data")
    (root / "clips").mkdir()
    with pytest.raises(DataError, match="clips.json: file: missing, and clips/ is there: its rendering was stopped"):
        read_annotations(root, "train")


def test_damage_of_clips_json_says_what_to_do(masters):
    (masters / "clips.json").write_bytes((masters / "clips.json").read_bytes()[:-40])
    with pytest.raises(DataError, match="no valid JSON.*delete the folder, and it can be made anew"):
        index_of(masters)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_the_workers_of_a_killed_rendering_end(tmp_path):
    command = [sys.executable, "-m", "crab_mini.world", "--out", str(tmp_path / "data"), "--clips", "5000"]
    parent = subprocess.Popen(command, cwd=HOME, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.rglob("*.flac")) and time.monotonic() < deadline:
            time.sleep(0.2)
        workers = children(parent.pid)
        assert workers
    finally:
        parent.kill()
        parent.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline + 60:
        time.sleep(0.2)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
