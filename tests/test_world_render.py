"""The rendered world: exact masks, loudness as the scene has it, the same bytes everywhere, looks and sounds apart."""

import hashlib
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from crab_mini.world import sounds, sprites, synthesis
from crab_mini.world.dials import Dials
from crab_mini.world.render import (
    FADE,
    LOUDNESS,
    Procedural,
    envelope,
    pictures,
    render,
    tinted,
)
from crab_mini.world.scene import (
    CATEGORIES,
    LEVELS,
    MAX_SEED,
    RATE,
    SECONDS,
    TEST_SEED,
    TEST_VARIANTS,
    TRAIN_VARIANTS,
    Scene,
    Thing,
    sample_scene,
)
from crab_mini.world.write import _jobs, write

ALL, NONE = (True,) * SECONDS, (False,) * SECONDS
VARIANTS = TRAIN_VARIANTS + TEST_VARIANTS
SEEDS = [0, 1, 2, 3, 4, 5, TEST_SEED, TEST_SEED + 1]


def thing(category="dog", visible=NONE, gain=(0.0,) * SECONDS, at=(0.5, 0.5), **rest) -> Thing:
    return Thing(category=category, variant=rest.pop("variant", 0), size=rest.pop("size", 0.4), centres=(at,) * SECONDS,
                 visible=visible, gain=tuple(gain), **rest)


def second(waveform: np.ndarray, t: int) -> np.ndarray:
    return waveform[t * RATE:(t + 1) * RATE]


def rms(wave: np.ndarray) -> float:
    return float(np.sqrt((wave.astype(np.float64) ** 2).mean()))


def digest(clip) -> str:
    return hashlib.sha256(clip.frames.tobytes() + clip.masks.tobytes() + clip.waveform.tobytes()).hexdigest()


def test_shapes_types_and_range():
    for seed in SEEDS:
        scene = sample_scene(seed)
        clip = render(scene)
        assert clip.frames.shape == (SECONDS, 64, 64, 3) and clip.frames.dtype == np.uint8
        assert clip.masks.shape == (len(scene.things), SECONDS, 64, 64) and clip.masks.dtype == bool
        assert clip.waveform.shape == (SECONDS * RATE,) and clip.waveform.dtype == np.float32
        assert np.isfinite(clip.waveform).all() and np.abs(clip.waveform).max() < 1
        small = np.abs(clip.waveform[clip.waveform != 0])
        assert small.min() > np.finfo(np.float32).tiny                     # no denormals


def test_same_scene_same_bytes_in_any_order_and_process():
    scenes = [sample_scene(seed) for seed in SEEDS[:4]]
    first = [digest(render(scene)) for scene in scenes]
    assert [digest(render(scene)) for scene in reversed(scenes)] == first[::-1]
    code = ("import hashlib\n"
            "from crab_mini.world.render import render\n"
            "from crab_mini.world.scene import sample_scene\n"
            f"c = render(sample_scene({SEEDS[2]}))\n"
            "print(hashlib.sha256(c.frames.tobytes() + c.masks.tobytes() + c.waveform.tobytes()).hexdigest())")
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == first[2]
    assert len(set(first)) == len(first)


def test_masks_are_where_things_changed_the_picture():
    for seed in SEEDS:
        scene = sample_scene(seed)
        frames, masks = pictures(scene, 64, Procedural())
        bare = pictures(replace(scene, things=()), 64, Procedural())[0]
        painted = masks.any(0)                                             # (T,H,W)
        changed = (np.abs(frames.astype(int) - bare) > 2).any(-1)
        near = painted.copy()                                              # the soft edge reaches one pixel out
        for axis in (1, 2):
            near |= np.roll(near, 1, axis) | np.roll(near, -1, axis)
        assert not (changed & ~near).any()
        assert (painted & ~changed).sum() <= 0.02 * painted.sum()
        assert masks.sum(0).max() <= 1                                     # nothing is seen through something else
        visible = np.array([t.visible for t in scene.things])
        assert not masks[~visible].any() and masks[visible].any((1, 2)).all()


class Flat(Procedural):
    """The procedural things before one grey."""

    def __init__(self, grey: float):
        self.grey = grey

    def background(self, seed: int, frames: int, image: int) -> np.ndarray:
        return np.full((frames, image, image, 3), self.grey, np.float32)


def test_a_mask_is_where_less_than_half_of_the_background_shines_through():
    for category in CATEGORIES:
        scene = Scene(0, (thing(category, ALL, angle=11.0),), 5, 0.0)
        (dark, mask), (light, _) = (pictures(scene, 64, Flat(grey)) for grey in (20.0, 220.0))
        through = (light[0].astype(float) - dark[0]).mean(-1) / 200
        clear = np.abs(through - 0.5) > 0.02
        assert np.array_equal((through < 0.5)[clear], mask[0, 0][clear]), category


def test_a_later_thing_hides_an_earlier_one():
    behind, before = thing("drum", ALL, at=(0.45, 0.5)), thing("bell", ALL, at=(0.55, 0.5))
    alone = pictures(Scene(0, (behind,), 5, 0.0), 64, Procedural())[1][0]
    masks = pictures(Scene(0, (behind, before), 5, 0.0), 64, Procedural())[1]
    hidden = alone & masks[1]
    assert hidden.any() and np.array_equal(masks[0], alone & ~masks[1])


@pytest.mark.parametrize("image", [48, 64, 224])
@pytest.mark.parametrize("category", CATEGORIES)
def test_size_and_place_are_the_scenes(image, category):
    for angle, flip in ((0.0, False), (17.0, True)):
        scene = Scene(0, (thing(category, ALL, at=(0.4, 0.6), angle=angle, flip=flip),), 5, 0.0)
        rows, columns = np.nonzero(pictures(scene, image, Procedural())[1][0, 0])
        box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / image
        assert abs(max(box[2] - box[0], box[3] - box[1]) - 0.4) <= 2.1 / image
        centre = (box[:2] + box[2:]) / 2
        assert np.abs(centre - (0.4, 0.6)).max() <= 1.6 / image


def test_a_thing_may_stick_out_of_the_frame_or_be_outside():
    masks = pictures(Scene(0, (thing(visible=ALL, at=(0.02, 0.98)), thing(visible=ALL, at=(-1.0, 2.0))), 5, 0.0), 64,
                     Procedural())[1]
    assert masks[0].any() and masks[0][:, -1, :].any() and not masks[1].any()


def test_loudness_is_the_gain_in_every_second():
    for category in CATEGORIES:
        gain = (0.0, 1.0, 1.0, 0.5, 0.0, 0.0, 0.27, 0.27, 0.27, 0.8)
        wave = render(Scene(3, (thing(category, gain=gain, pitch=1.03),), 0, 0.0)).waveform
        for t, level in enumerate(gain):
            assert rms(second(wave, t)) == pytest.approx(level * LOUDNESS, rel=0.06, abs=1e-7), (category, t)


def test_sound_begins_and_ends_softly_with_the_whole_second():
    wave = render(Scene(3, (thing("violin", gain=(0, 0, 1, 1, 0, 0, 0, 0, 0, 0)),), 0, 0.0)).waveform
    assert not wave[:2 * RATE].any() and not wave[4 * RATE:].any()
    assert np.abs(wave[2 * RATE:2 * RATE + 16]).max() < 0.03 and np.abs(wave[4 * RATE - 16:4 * RATE]).max() < 0.03
    shape = envelope(np.array([0, 1, 1, 0.5, 1, 0, 0, 0, 0, 1.0]))
    steps = np.abs(np.diff(shape, prepend=0, append=0)).max()
    assert steps <= 1.01 / (FADE - 1) and shape[RATE + FADE:3 * RATE - FADE].min() == 1


def test_silent_seconds_hold_the_noise_and_nothing_else():
    wave = render(Scene(3, (thing("dog", gain=(1,) + (0,) * 9),), 0, 0.004)).waveform
    assert all(rms(second(wave, t)) == pytest.approx(0.004, rel=0.12) for t in range(1, SECONDS))


def test_the_loudest_mix_does_not_clip():
    loud = tuple(thing(c, gain=(1.07 * level,) * SECONDS) for c, level in zip(("drum", "dog", "clock"), LEVELS))
    assert np.abs(render(Scene(5, loud, 0, 0.01)).waveform).max() < 1


def test_every_second_of_a_voice_holds_events_below_the_nyquist_frequency():
    for category in CATEGORIES:
        for variant in VARIANTS:
            ring = sounds.voice(category, variant)
            assert len(ring) == synthesis.LOOP * synthesis.FINE and np.abs(ring).max() <= synthesis.CREST
            power = np.abs(np.fft.rfft(ring)) ** 2
            assert power[int(7900 * synthesis.LOOP):].sum() < 1e-3 * power.sum(), category
            halves = np.sqrt((ring.reshape(-1, synthesis.FINE // 2) ** 2).mean(1))
            assert halves.min() > 0.2, (category, variant)
            assert np.abs(ring[0] - ring[-1]) < 4 * np.abs(np.diff(ring)).max()        # no seam in the loop


def _looks(category: str, variant: int) -> np.ndarray:
    return np.asarray(sprites.sprite(category, variant).resize((24, 24)), np.float32)


def _sounds(category: str, variant: int) -> np.ndarray:
    power = np.abs(np.fft.rfft(sounds.voice(category, variant))) ** 2
    edges = np.geomspace(50, 7200, 40) * synthesis.LOOP
    return np.log([power[int(a):int(b)].sum() + 1e-3 for a, b in zip(edges, edges[1:])])


@pytest.mark.parametrize("features", [_looks, _sounds])
def test_variants_differ_and_still_tell_their_category(features):
    table = np.array([[features(c, v).ravel() for v in VARIANTS] for c in CATEGORIES])     # (C,V,F)
    for row in table:
        apart = np.abs(row[:, None] - row[None]).mean(-1) + 1e9 * np.eye(len(VARIANTS))
        assert apart.min() > 0.05
    centre = table[:, :len(TRAIN_VARIANTS)].mean(1)                                       # (C,F)
    for k, row in enumerate(table):
        for unseen in row[len(TRAIN_VARIANTS):]:
            assert ((unseen - centre) ** 2).sum(1).argmin() == k, CATEGORIES[k]


def test_no_seed_of_a_data_set_reaches_the_test_set_s_looks(tmp_path):
    assert max(seed for _, seed, _ in _jobs("train", 3, MAX_SEED)) < TEST_SEED
    with pytest.raises(ValueError, match=f"--seed: expected 0 to {MAX_SEED}, found {MAX_SEED + 1}"):
        write(tmp_path / "out", 9, 12, seed=MAX_SEED + 1)
    assert not (tmp_path / "out").exists()


def test_dials_keep_test_variants_between_the_training_ones():
    for name in ("a", "b", "c"):
        dials = [Dials(name, v) for v in VARIANTS]
        for _ in range(20):
            values = [dial(2.0, 3.0) for dial in dials]
            assert len({round(v, 6) for v in values}) == len(VARIANTS)
            assert min(values) == 2.0 and max(values) == 3.0 and all(2 < values[v] < 3 for v in TEST_VARIANTS)
    with pytest.raises(ValueError, match="variant"):
        Dials("a", len(VARIANTS))


def test_tint_keeps_greys_and_turns_colours():
    grey = np.full((1, 3), 90, np.float32)
    assert np.allclose(tinted(grey, 1.0), grey, atol=1e-3)
    red = np.array([[200, 10, 10]], np.float32)
    assert np.allclose(tinted(tinted(red, 0.7), -0.7), red, atol=1e-2) and np.abs(tinted(red, 1.0) - red).max() > 20


def test_a_clip_takes_little_time():
    scenes = [sample_scene(seed) for seed in range(40)]
    for scene in scenes:
        render(scene)                                       # draws and synthesises what they need, once a process
    start = time.process_time()
    for scene in scenes:
        render(scene)
    assert (time.process_time() - start) / len(scenes) < 0.05
