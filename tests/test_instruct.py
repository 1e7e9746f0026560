"""Data in the AV-UIE layout through train.py: what is there trains, what is not is named, what is bad stops or goes."""

import json
from pathlib import Path

import pytest
import torch

import train
from crab_mini.av_uie.class_lists import classes_of
from crab_mini.av_uie.rows import event_names, read_annotations
from crab_mini.batch import collate
from crab_mini.bundle import build
from crab_mini.config import override, preset
from crab_mini.errors import DataError
from crab_mini.features import cache as feature_cache
from crab_mini.features.encoders import Features
from crab_mini.features.rows import Split, usable
from crab_mini.options import STAGES
from crab_mini.tasks.base import MASK_GROUP, TASKS
from crab_mini.tasks.class_names import AVSBENCH_CLASSES, class_meant, class_number
from crab_mini.tokenizer import Tokenizer
from crab_mini.world.scene import WORLD
from crab_mini.world.write import write

from . import small_av_uie as small

NANO = ["--preset", "nano", "--precision", "fp32", "--kernel", "torch", "--world.clips", "9", "--world.test_clips", "12",
        "--world.rows_per_task", "1", *(f"--{name}.batch=4" for name in STAGES)]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with the early stages of a run (two steps each), to share; one thread."""
    folder, threads = tmp_path_factory.mktemp("instruct"), torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CRAB_KERNEL", "torch")
        patch.setattr(train, "evaluate", lambda *_: {})
        assert train.main([*NANO, "--max-steps", "2", "--out", "early"]) == 0
        patch.undo()
        patch.chdir(folder)
        patch.setenv("CRAB_KERNEL", "torch")
        yield folder
    torch.set_num_threads(threads)


@pytest.fixture
def data(tmp_path) -> Path:
    return small.build(tmp_path / "data")


def run(out: Path, *words: str) -> int:
    return train.main([*NANO, "--max-steps", "2", "--stages", "early", "--out", str(out), *words])


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return Tokenizer.train(["the bell is heard at second 3 ."] * 3, 400)


def rows_of(data: Path, words: Tokenizer, split: str = "train", **options) -> Split:
    crab = build(override(preset("nano"), "llm.vocab_size", str(words.size)), words)
    return Split(data, split, list(TASKS), Features(crab, torch.device("cpu")), words, **options)


def test_all_nine_tasks_train_and_are_scored(here, data, tmp_path):
    assert run(tmp_path / "out", "--data", str(data)) == 0
    results = json.loads((tmp_path / "out/results.json").read_text())["results"]
    assert set(results) == set(TASKS) and all(r["n"] == 1 for r in results.values())


def test_films_and_compressed_sound_train_and_tasks_that_are_not_there_are_named(here, tmp_path, capsys):
    pytest.importorskip("av")
    row = dict(vid="a", event="Male speech, man speaking", start_time=0, end_time=8, video_path="a.mp4",
               audio_path="a.mp3", label_content="A man talks: <event> Male speech, man speaking </event>, "
                                                 "<range> 0,8 </range>.")
    small.video(tmp_path / "data/ave/video/a.mp4", sound=False)
    small.tone(tmp_path / "data/ave/audio/a.mp3", rate=44100, channels=2)
    small.write(tmp_path / "data", "ave", [row])
    assert run(tmp_path / "out", "--data", str(tmp_path / "data")) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path / 'data'} has no avvp, arig, s4, ms3, avss, ref_avs, avqa, avcap: left out" in said
    assert set(json.loads((tmp_path / "out/results.json").read_text())["results"]) == {"ave"}


@pytest.mark.parametrize("damage, line", [
    (lambda data: (data / "s4/train.json").write_text("[]"), "s4/train.json: file: empty: no samples"),
    (lambda data: (data / "ave/audio/a.wav").write_bytes(b"RIFF"), "ave/audio/a.wav: audio_path: named .wav"),
    (lambda data: (data / "ms3/test.json").write_text("{"), "ms3/test.json: file: no valid JSON"),
])
@pytest.mark.parametrize("early", [True, False])
def test_bad_data_stop_before_the_first_step(here, data, tmp_path, capsys, damage, line, early):
    damage(data)
    words = [*NANO, "--data", str(data), "--out", str(tmp_path / "out")]
    words += ["--stages", "early", "--max-steps", "2"] * early
    assert train.main(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert line in error and error.startswith("train.py: ")
    assert not any(path.stat().st_size for path in (tmp_path / "out").glob("*.jsonl"))


def test_bad_samples_are_left_out_and_listed(here, data, tmp_path, capsys):
    (data / "ave/audio/a.wav").write_bytes(b"RIFF")
    rows = json.loads((data / "s4/train.json").read_text())
    (data / "s4/train.json").write_text(json.dumps(rows + [{"vid": 3}]))
    assert run(tmp_path / "out", "--data", str(data), "--skip-bad") == 0
    said = capsys.readouterr().out
    assert "--skip-bad leaves 2 sample(s) out of train:" in said and "leaves 1 sample(s) out of test:" in said
    assert f"  {data / 's4/train.json'}[1]: uid: missing key" in said
    assert "a.wav: audio_path: named .wav but holds" in said
    assert set(json.loads((tmp_path / "out/results.json").read_text())["results"]) == set(TASKS) - {"ave"}
    for task in set(TASKS) - {"ave"}:
        (data / task / "train.json").unlink()
    assert run(tmp_path / "none", "--data", str(data), "--skip-bad") == 2
    assert "train.json: no usable sample of ave" in capsys.readouterr().err


@pytest.mark.parametrize("words, line", [
    (["--data", "nowhere"], "nowhere: data folder: missing"),
    (["--data", "DATA", "--task", "ave,s5"], "--task s5: no such task; nearest: s4"),
    (["--data", "DATA", "--task", "avqa"], "no train.json in any of the task folders avqa"),
    (["--skip-bad"], "--skip-bad needs --data DIR"),
])
def test_data_that_is_not_there_is_one_line(here, data, tmp_path, words, line, capsys):
    (data / "avqa/train.json").unlink()
    assert run(tmp_path / "out", *(str(data) if word == "DATA" else word for word in words)) == 2
    assert line in capsys.readouterr().err.splitlines()[-1]


def test_cached_features_are_used_by_the_next_run(here, data, tmp_path, monkeypatch):
    cached = ["--data", str(data), "--cache-features", str(tmp_path / "cache"), "--task", "ave,arig"]
    assert run(tmp_path / "one", *cached) == 0

    def never(*_):
        raise AssertionError("decoded again")
    monkeypatch.setattr(feature_cache, "decode", never)
    assert run(tmp_path / "two", *cached) == 0
    one, two = ((tmp_path / out / "results.json").read_text() for out in ("one", "two"))
    assert json.loads(one)["results"] == json.loads(two)["results"]


def test_a_minute_s_clip_has_two_seconds_of_sound_for_each_frame(data, words):
    small.tone(data / "avqa/audio/a.wav", 60)
    small.strip(data / "avqa/video/a.png", 60)
    rows = rows_of(data, words)
    long, short = (rows.sequence(rows.of(task)[0]) for task in ("avqa", "ave"))
    assert long.visual.shape[0] == short.visual.shape[0] == short.audio.shape[0] == 10 and long.audio.shape[0] == 20
    batch = collate([long, short], words.pad)
    queries = rows.cfg.audio_qformer.queries
    assert (batch.ids == words.audio).sum(1).tolist() == [20 * queries, 10 * queries]
    assert (batch.ids == words.visual).sum() == 20 * rows.cfg.visual_qformer.queries
    crab = rows.features.crab
    assert torch.isfinite(crab(batch).losses["text"][0])


def test_what_an_annotation_leaves_out_is_appended(data, words):
    rows = {row.task: row.fields for row in read_annotations(data, "train")}
    answer = TASKS["avss"].answer(rows["avss"])
    assert answer == f"The bird sings bird {MASK_GROUP}, emergency-car {MASK_GROUP}."
    assert TASKS["s4"].answer(rows["s4"]) == f"The bird sings {MASK_GROUP}."
    arig = dict(rows["arig"], label_content="The bird.")
    assert TASKS["arig"].answer(arig) == "The bird (10,20),(110,220)."
    assert TASKS["arig"].answer(rows["arig"]) == rows["arig"]["label_content"]
    assert TASKS["avqa"].answer(dict(rows["avqa"], label="Two.")) == "Two <answer> two </answer>."
    batch = rows_of(data, words)
    assert batch.sequence(batch.of("avss")[0]).masks.shape[0] == 2


@pytest.mark.parametrize("task, change, line", [
    ("s4", dict(label_content=f"It {MASK_GROUP} {MASK_GROUP}."), "expected 1 whole group(s) of mask tokens, found 12"),
    ("s4", dict(label_content="It <mask_start><mask_0><mask_1><mask_end>."), "expected 1 whole group(s) of mask"),
    ("avss", dict(label_content=f"It {MASK_GROUP}."), "expected 2 whole group(s) of mask tokens, found 6"),
    ("avss", dict(a_obj="bird, spaceship"), "a_obj: 'spaceship' is none of the 71 class names"),
    ("avss", dict(a_obj="bird, dog", label_content=f"It is dog {MASK_GROUP}, bird {MASK_GROUP}."),
     "expected masks in the order of a_obj, bird, dog: 'bird' comes where the text says 'It is dog'"),
    ("ave", dict(label_content="<event> x </event> <range> 2,6 </range> <mask_0>"), "expected 0 whole group(s)"),
    ("avqa", dict(question="<visual> what?"), "expected no '<visual>': it is the model's own mark"),
    ("avcap", dict(label_content="a <audio> b"), "expected no '<audio>': it is the model's own mark"),
])
def test_an_annotation_that_does_not_fit_the_model_is_named(data, task, change, line):
    path = data / task / "train.json"
    path.write_text(json.dumps([json.loads(path.read_text())[0] | change]))
    with pytest.raises(DataError) as caught:
        read_annotations(data, "train", [task])
    assert line in str(caught.value) and f"{task}/train.json[0]: " in str(caught.value)
    problems = []
    assert read_annotations(data, "train", [task], problems) == [] and len(problems) == 1
    problems = []
    usable(data, ("train", "test"), [task], problems)
    assert len(problems) == 1
    assert {row.task for row in read_annotations(data, "test")} == set(TASKS)


def test_clips_of_another_size_or_version_or_a_dial_that_turns_nothing_stop_before_the_first_step(here, tmp_path, capsys):
    write(tmp_path / "clips", 9, 12, 32, cap=1, workers=1)
    words = ["--data", str(tmp_path / "clips"), "--out", str(tmp_path / "out")]
    assert train.main(["--preset", "nano", "--precision", "fp32", "--kernel", "torch", *words]) == 2
    assert "clips: expected frames of 64 pixels, found 32" in capsys.readouterr().err.splitlines()[-1]
    assert train.main([*NANO, *words, "--vision.image", "32"]) == 2
    assert "--world.clips: " in capsys.readouterr().err.splitlines()[-1]
    index = tmp_path / "clips" / "clips.json"
    index.write_text(index.read_text().replace('"version": ', '"version": 1'))
    assert train.main(["--preset", "nano", "--precision", "fp32", "--kernel", "torch", *words]) == 2
    assert f"version: expected {WORLD}, found 1{WORLD}: " in capsys.readouterr().err.splitlines()[-1]
    assert not list((tmp_path / "out").glob("*.jsonl"))


def test_a_ctrl_c_between_the_stages_is_one_line(here, tmp_path, capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(train, "check_annotations", stop)
    assert run(tmp_path / "out") == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("train.py: stopped")


def test_class_names_are_found_by_their_words(tmp_path):
    number = AVSBENCH_CLASSES.index
    for text, name in (("lawn mower", "mower"), (" Missile Rocket", "missile-rocket"), ("a large emergency car,",
                       "emergency-car"), ("man", "man"), ("hair_dryer", "hair-dryer")):
        assert class_number(text, AVSBENCH_CLASSES) == number(name)
    assert class_meant("woman", AVSBENCH_CLASSES) == number("woman")
    assert class_meant("nothing", AVSBENCH_CLASSES) is class_meant("background", AVSBENCH_CLASSES) is None
    assert class_meant("", AVSBENCH_CLASSES) is None
    assert class_meant("sea lion", ("background", "lion", "sea-lion")) == 2
    with pytest.raises(ValueError, match="'unicorn' is none of the 71 class names"):
        class_number(" unicorn ", AVSBENCH_CLASSES)
    assert classes_of(tmp_path) == AVSBENCH_CLASSES
    (tmp_path / "classes.json").write_text('["background", "owl"]')
    assert classes_of(tmp_path) == ("background", "owl")
    assert event_names(tmp_path) == ["owl"]
    small.build(tmp_path)       # ave names a bell; avvp sees a bell and hears a dog
    assert event_names(tmp_path) == ["Bell", "Dog", "owl"]
    (tmp_path / "clips.json").write_text('{"categories": ["owl", "tuba"]}')
    assert event_names(tmp_path) == ["owl", "tuba"]
    (tmp_path / "clips.json").write_text('{"clips": []}')
    with pytest.raises(DataError, match="clips.json: categories: expected a list of names, found None"):
        event_names(tmp_path)
    (tmp_path / "classes.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="classes.json: file: expected a JSON list of class names"):
        classes_of(tmp_path)
    (tmp_path / "classes.json").write_text('[')
    with pytest.raises(DataError, match="classes.json: file: no valid JSON"):
        classes_of(tmp_path)
