"""The picture of a sample shows what is in the sample: masks, boxes, spans and sound at their places."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crab_mini.av_uie import draw
from crab_mini.av_uie.__main__ import main
from crab_mini.av_uie.rows import read_annotations
from crab_mini.av_uie.samples import decode
from crab_mini.tasks.base import TASKS
from crab_mini.tasks.drawing import Drawing

from . import small_av_uie as small


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> dict:
    root = small.build(tmp_path_factory.mktemp("draw"))
    return {row.task: decode(row, 32) for row in read_annotations(root, "test")} | {"root": root}


def count(image: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(image) == np.array(colour)).all(-1).sum())


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_picture(samples, task):
    plain = draw.panel(samples[task])
    assert plain.width == draw.WIDTH and plain.height > draw.SPECTRUM + 60
    told = draw.panel(samples[task], "What?", "a long answer " * 40 + "<mask_0><mask_1>", Drawing("no", events=[
        ("Bell", 1, 4)]))
    assert told.height > plain.height + 60
    assert count(told, draw.GUESS) > count(plain, draw.GUESS) == 0


def test_a_mask_tints_its_pixels_and_no_others():
    frame = torch.full((3, 16, 16), 100, dtype=torch.uint8)
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :4, 4:] = True                                              # the upper right quarter
    tinted = np.asarray(draw.overlay(frame, mask, draw.GUESS, 64)).astype(int)
    assert (tinted[:32, :32] == 100).all() and (tinted[32:] == 100).all()
    assert (tinted[:32, 32:, 0] > 150).all() and (tinted[:32, 32:, 1] < 80).all()
    classes = torch.zeros(8, 8, dtype=torch.long)
    classes[4:] = 2                                                     # airplane: green in AVSBench's palette
    coloured = np.asarray(draw.overlay(frame, classes, draw.GUESS, 64)).astype(int)
    assert (coloured[:32] == 100).all() and (coloured[32:, :, 1] > coloured[32:, :, 0] + 50).all()


def test_a_box_is_drawn_where_it_is(samples):
    sample = samples["arig"]
    image = np.asarray(draw.target("truth", sample.frames[0], Drawing(box=(56, 112, 168, 224)), draw.TRUTH))
    at = np.argwhere((image == np.array(draw.TRUTH)).all(-1) & (np.arange(len(image)) > 20)[:, None])
    side = draw.LARGE
    assert at[:, 1].min() == side // 4 and at[:, 1].max() == side * 3 // 4 and at[:, 0].min() == 18 + side // 2


def test_the_spectrogram_shows_a_tone_at_its_height_and_time():
    wave = torch.zeros(4, 16000)
    wave[2] = 0.5 * torch.sin(2 * torch.pi * 1000 * torch.arange(16000) / 16000)
    bright = np.asarray(draw.spectrogram(wave + 1e-4 * torch.randn(4, 16000))).astype(int).sum(-1)
    assert bright.shape == (128, 4 * 98)
    loud = bright.max(0) > 500
    assert loud[200:290].all() and not loud[:190].any() and not loud[300:].any()
    mel = 1127 * np.log(1 + np.array([20, 1000, 8000]) / 700)
    row = 128 * (mel[2] - mel[1]) / (mel[2] - mel[0])                   # from the top
    assert abs(bright[:, 240].argmax() - row) < 4


def test_a_span_is_as_long_as_its_event(samples):
    row = np.asarray(draw.spans(10, "truth", [("x", 2, 6)], draw.TRUTH))
    filled = np.argwhere((row[10] != 255).any(-1))
    width = row.shape[1]
    assert abs(filled.min() - 0.2 * width) <= 1 and abs(filled.max() - 0.6 * width) <= 2


def test_show(samples, tmp_path, capsys):
    root = str(samples["root"])
    assert main(["show", root, "--task", "ms3", "--out", str(tmp_path / "a.png")]) == 0
    assert Image.open(tmp_path / "a.png").width == draw.WIDTH
    assert main(["show", root, "--task", "ms3", "--index", "4", "--out", str(tmp_path / "b.png")]) == 2
    assert "index: no usable sample 4: 1 are there" in capsys.readouterr().err
    assert main(["show", root, "--task", "ms3", "--out", str(tmp_path / "no" / "b.png")]) == 2
    assert main(["show", str(tmp_path), "--task", "ms3", "--out", str(Path(tmp_path) / "b.png")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2 and not (tmp_path / "b.png").exists()
