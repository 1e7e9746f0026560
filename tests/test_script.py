"""The script: each second's slots hold exactly what the scene says, and a box can be read back from its words."""

import numpy as np

from crab_mini.tasks.base import FRAME
from crab_mini.world.scene import CATEGORIES, SECONDS
from crab_mini.world.script import (
    CELLS,
    SIDES,
    VOICES,
    audio_words,
    script,
    visual_words,
)
from crab_mini.world.view import STEP

from .scenes import views

SCENES = 40
NAMES = list(CATEGORIES)


def test_shapes_and_emptiness():
    for view in views(SCENES):
        visual, audio = script(view, NAMES)
        assert visual.shape == (SECONDS, CELLS, visual_words(len(NAMES))) and visual.dtype == np.float32
        assert audio.shape == (SECONDS, VOICES, audio_words(len(NAMES))) and audio.dtype == np.float32
        for slots, count in ((visual, CELLS), (audio, VOICES)):
            # a slot is empty, or it has words, never both; its last words say which slot it is
            assert ((slots[..., 0] == 1) == (slots[..., 1:-count].sum(-1) == 0)).all()
            assert (slots[..., -count:] == np.eye(count)).all()


def test_categories_stand_in_the_slot_of_their_quarter():
    for view in views(SCENES):
        visual = script(view, NAMES)[0]
        for t in range(SECONDS):
            for cell in range(CELLS):
                there = [view.names[i] for i in view.seen(t) if view.quarters[i, t] == cell]
                words = visual[t, cell, 1:1 + len(NAMES)]
                assert sorted(np.repeat(NAMES, words.astype(int))) == sorted(there)


def test_boxes_can_be_read_back():
    """The four sides, each the mean of the places that its words stand for."""
    for view in views(SCENES):
        visual = script(view, NAMES)[0]
        for t in range(SECONDS):
            for i in view.seen(t):
                if sum(view.quarters[j, t] == view.quarters[i, t] for j in view.seen(t)) == 1:
                    sides = visual[t, view.quarters[i, t], 1 + len(NAMES):-CELLS].reshape(4, SIDES)
                    assert np.allclose(sides.sum(1), 1) and (sides > 0).sum(1).max() <= 2
                    assert np.allclose(sides @ np.arange(SIDES) * STEP / FRAME, view.boxes[i, t], atol=1e-5)


def test_the_loudest_voice_comes_first_and_the_others_second():
    for view in views(SCENES):
        audio = script(view, NAMES)[1]
        for t in range(SECONDS):
            names = [view.names[i] for i in view.heard(t)]
            first, second = (list(np.repeat(NAMES, voice[1:-VOICES].astype(int))) for voice in audio[t])
            assert first == names[:1] and sorted(second) == sorted(names[1:])


def test_another_order_of_the_categories_only_reorders_the_words():
    view = views(1)[0]
    order = np.random.default_rng(0).permutation(len(NAMES))
    (visual, audio), (turned, said) = script(view, NAMES), script(view, [NAMES[k] for k in order])
    assert np.array_equal(said[..., 1:-VOICES], audio[..., 1:-VOICES][..., order])
    assert np.array_equal(turned[..., 1:1 + len(NAMES)], visual[..., 1:1 + len(NAMES)][..., order])
