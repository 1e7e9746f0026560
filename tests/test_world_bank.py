"""A bank of pictures and sounds made here: what is used, what is skipped and why, and that scenes render from it."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from PIL import Image, ImageDraw

from crab_mini.errors import DataError
from crab_mini.tasks.class_names import AVSBENCH_CLASSES
from crab_mini.world import bank, real_media
from crab_mini.world.__main__ import main
from crab_mini.world.render import LOUDNESS, render
from crab_mini.world.scene import RATE, SECONDS, TEST_SEED, Scene, Thing, sample_scene
from crab_mini.world.synthesis import FINE, LOOP

NAMES = ("dog", "Sea_Lion", "grand piano", "Käuzchen", "cat")


def picture(path, colour=(200, 60, 40), size=(90, 70), mode="RGBA"):
    """An ellipse in a larger transparent picture."""
    image = Image.new("RGBA", (size[0] + 20, size[1] + 30))
    ImageDraw.Draw(image).ellipse((12, 9, 11 + size[0], 8 + size[1]), colour + (255,))
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == "P":
        flat = Image.fromarray((np.asarray(image)[..., 3] > 0).astype(np.uint8), "P")
        flat.putpalette((0, 0, 0) + colour)
        flat.save(path, transparency=0)
    else:
        image.convert(mode).save(path)


def sound(path, pitch=440.0, seconds=1.0, rate=22050, channels=1, loud=0.3):
    """A tone with an overtone, at any rate."""
    t = np.arange(int(seconds * rate)) / rate
    wave = loud * (np.sin(2 * np.pi * pitch * t) + 0.3 * np.sin(4 * np.pi * pitch * t))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.repeat(wave[:, None], channels, 1), rate)


@pytest.fixture
def folder(tmp_path):
    """Five usable classes in different modes, formats and depths."""
    root = tmp_path / "stamps"
    modes, ends = ("RGBA", "LA", "P", "RGBA", "RGBA"), (".wav", ".ogg", ".flac", ".mp3", ".wav")
    for k, (name, mode, end) in enumerate(zip(NAMES, modes, ends)):
        picture(root / f"part{k % 2}" / f"{name}.png", (40 * k, 200 - 30 * k, 90), mode=mode)
        sound(root / f"part{k % 2}" / f"{name}{end}", 200 + 97 * k, 0.4 + 2.3 * k, (8000, 44100)[k % 2], 1 + k % 2)
    return root


def reasons(skipped) -> dict[str, str]:
    return {one.path.name: one.reason for one in skipped}


def test_every_pair_is_found_under_a_parsable_name(folder):
    found, skipped = bank.scan(folder)
    assert found.categories == ("cat", "dog", "grand-piano", "käuzchen", "sea-lion") and not skipped
    only, _ = bank.scan(folder, ["Sea_Lion", "dog", "grand piano", "cat", "käuzchen"])
    assert only == found


def test_what_cannot_be_used_is_listed_with_its_reason(folder):
    Image.new("RGB", (60, 60), "red").save(folder / "square.png")
    Image.new("RGBA", (60, 60), "red").save(folder / "opaque.png")
    Image.new("RGBA", (60, 60)).save(folder / "empty.png")
    picture(folder / "tiny.png", size=(20, 20))
    picture(folder / "slim.png", size=(200, 12))
    for name in ("mute", "twin", "brief", "lonely", "torn", "noise", "0", "nothing", "x/dog"):
        picture(folder / f"{name}.png")
    for k, name in enumerate(("square", "opaque", "empty", "tiny", "slim", "alone", "x/dog", "0", "nothing")):
        sound(folder / f"{name}.wav", 900 + 61 * k)
    sound(folder / "mute.wav", loud=0.0)
    sound(folder / "brief.wav", 777, seconds=0.05)
    (folder / "torn.wav").write_bytes((folder / "slim.wav").read_bytes()[:5000])
    (folder / "noise.wav").write_bytes(b"no sound at all")
    sound(folder / "twin.wav", 200, 0.4, 8000)                                 # the dog's, under another name
    sound(folder / "dog_desc_en.wav", 300)
    picture(folder / "symbols" / "letter.png")
    sound(folder / "symbols" / "letter.wav", 1234)
    found, skipped = bank.scan(folder)
    assert len(found.categories) == len(NAMES)
    said = reasons(skipped)
    expected = dict(square="no transparency", opaque="opaque", empty="transparent everywhere", tiny="too small",
                    slim="too slim", lonely="no sound", letter="read out")
    for name, reason in expected.items():
        assert reason in said[f"{name}.png"], name
    for name, reason in dict(mute="silent", brief="too short", torn="cut off", noise="no known format",
                             twin="same recording as dog", alone="no picture").items():
        assert reason in said[f"{name}.wav"], name
    assert "cannot name a class" in said["0.png"] and "cannot name a class" in said["nothing.png"]
    assert "already" in said["dog.png"]
    assert not any("_desc" in name for name in said)


def test_masks_are_the_pictures_alpha_and_sounds_are_levelled(folder):
    found, _ = bank.scan(folder)
    for category in found.categories:
        thing = Thing(category, 0, 0.5, ((0.5, 0.5),) * SECONDS, (True,) * SECONDS, (0.0,) * 3 + (0.6,) * 7)
        clip = render(Scene(1, (thing,), 2, 0.0), 96, found)
        mask = clip.masks[0, 4]
        rows, columns = np.nonzero(mask)
        high, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert abs(max(high, wide) - 48) <= 2
        assert mask.sum() / (high * wide) == pytest.approx(np.pi / 4, abs=0.03)        # an ellipse in its box
        for t in range(SECONDS):
            level = np.sqrt((clip.waveform[t * RATE:(t + 1) * RATE].astype(float) ** 2).mean())
            assert level == pytest.approx(LOUDNESS * (0.6 if t >= 3 else 0), rel=0.06, abs=1e-7), (category, t)


def test_a_recording_keeps_its_pitch_and_loses_its_pauses(folder):
    found, _ = bank.scan(folder)
    for k, name in enumerate(NAMES):
        loop, speed = found.voice(bank.class_name(name), 0)
        spectrum = np.abs(np.fft.rfft(loop))
        assert spectrum.argmax() * FINE / len(loop) == pytest.approx(200 + 97 * k, abs=3)
        assert 1 / real_media.MAX_SPEED <= speed <= real_media.MAX_SPEED
        assert LOOP * FINE <= len(loop) <= 2 * LOOP * FINE
    burst = np.sin(np.arange(RATE // 2) * 0.3)
    wave = np.concatenate([np.zeros(RATE), burst, np.zeros(3 * RATE), burst])
    assert len(real_media.without_pauses(wave)) == pytest.approx(RATE * (1 + real_media.MAX_PAUSE), rel=0.05)


def test_held_out_variants_differ_only_when_asked_for(folder):
    plain, held = bank.scan(folder)[0], bank.scan(folder, holdout=True)[0]
    for category in plain.categories:
        assert plain.look(category, 6).tobytes() == plain.look(category, 0).tobytes()
        assert plain.voice(category, 7)[1] == plain.voice(category, 1)[1]
        looks = {held.look(category, v).tobytes() for v in range(8)}
        speeds = {held.voice(category, v)[1] for v in range(8)}
        assert len(looks) == len(speeds) == 8


def test_backgrounds_are_the_users_pictures(folder, tmp_path):
    (tmp_path / "sky").mkdir()
    Image.new("RGB", (300, 200), (20, 90, 240)).save(tmp_path / "sky" / "blue.jpg")
    (tmp_path / "sky" / "bad.png").write_bytes(b"")
    found, skipped = bank.scan(folder, backgrounds=tmp_path / "sky")
    assert "empty file" in reasons(skipped)["bad.png"]
    frames = render(replace(sample_scene(3, found.categories), things=()), 64, found).frames
    assert np.abs(frames.reshape(-1, 3).mean(0) - (20, 90, 240)).max() < 4
    assert np.array_equal(frames, render(replace(sample_scene(3, found.categories), things=()), 64, found).frames)


def test_class_numbers_are_avsbenchs_where_it_has_the_class():
    names = bank.class_names(("dog", "sea-lion", "grand-piano", "accordion"))
    assert len(names) == len(set(names)) == len(AVSBENCH_CLASSES) and names[0] == "background"
    assert all(names.index(n) == AVSBENCH_CLASSES.index(n) for n in ("dog", "accordion"))
    assert names.index("sea-lion") > 0 and names.index("grand-piano") > 0
    assert bank.class_names(AVSBENCH_CLASSES[1:]) == AVSBENCH_CLASSES
    with pytest.raises(ValueError, match="at most 70"):
        bank.class_names([f"c{k}" for k in range(71)])


def test_the_command_writes_a_set_with_all_tasks(folder, tmp_path, capsys):
    out = tmp_path / "data"
    arguments = ["--bank", str(folder), "--out", str(out), "--clips", "12", "--test-clips", "8", "--holdout-variants"]
    assert main(arguments) == 0
    assert "5 classes: cat, dog, grand-piano" in capsys.readouterr().out
    index = json.loads((out / "clips.json").read_text())
    assert index["categories"] == ["cat", "dog", "grand-piano", "käuzchen", "sea-lion"]
    assert {c["seed"] >= TEST_SEED for vid, c in index["clips"].items() if vid.startswith("test")} == {True}
    assert {c["seed"] >= TEST_SEED for vid, c in index["clips"].items() if vid.startswith("train")} == {False}
    assert set(index["categories"]) < set(json.loads((out / "classes.json").read_text()))
    rows = json.loads((out / "avvp" / "test.json").read_text())
    assert rows and all(set(row["event"].split(",")) <= set(index["categories"]) for row in rows)


@pytest.mark.parametrize("arguments, words", [
    (["--bank", "missing"], "missing: bank: no such folder"),
    (["--bank", "{root}", "--classes", "cat,dgo"], "'dgo'.*nearest: dog"),
    (["--bank", "{root}", "--classes", "cat,dog"], "2 usable classes, expected 5"),
    (["--bank", "{root}", "--backgrounds", "{root}/none"], "backgrounds: no such folder"),
    (["--classes", "cat"], "--classes needs --bank"),
    (["--holdout-variants"], "--holdout-variants needs --bank"),
])
def test_one_line_for_what_cannot_be_done(folder, capsys, tmp_path, arguments, words):
    arguments = [a.format(root=folder) for a in arguments] + ["--out", str(tmp_path / "none")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and not (tmp_path / "none").exists()
    assert re.search(words, error)


def test_list_writes_nothing(folder, tmp_path, capsys):
    picture(folder / "lonely.png")
    assert main(["--bank", str(folder), "--list", "--out", str(tmp_path / "none")]) == 0
    assert "lonely.png: no sound of the same name" in capsys.readouterr().out and not (tmp_path / "none").exists()


def test_a_bank_without_its_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="0 usable classes"):
        bank.scan(tmp_path)
