"""eval.py from its command line: a model that knows the truth scores perfectly, and whatever cannot be is one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import eval as program
from crab_mini import bundle
from crab_mini.av_uie.rows import read_annotations
from crab_mini.config import override, preset
from crab_mini.evaluation import generate as answering
from crab_mini.evaluation.own_files import Request, sample_of
from crab_mini.model.crab import Answers, Crab
from crab_mini.tasks.base import MASK_GROUP, TASKS
from crab_mini.tokenizer import Tokenizer
from crab_mini.world.write import write

from . import small_av_uie as small

QUICK = ["--precision", "fp32", "--kernel", "torch"]
SIZE = 64


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a nano model of random weights, run/crab.pt, the few clips it belongs to, and files of one's own."""
    folder, threads = tmp_path_factory.mktemp("eval"), torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CRAB_KERNEL", "torch")
        patch.setattr(answering, "limit_of", lambda *_: 6)
        write(Path("mini"), 9, 16, SIZE, cap=3, workers=1)
        rows = read_annotations("mini", "test")
        words = Tokenizer.train([TASKS[r.task].prompt(r.fields) + TASKS[r.task].answer(r.fields) for r in rows] * 2, 500)
        torch.manual_seed(0)
        crab = bundle.build(override(preset("nano"), "llm.vocab_size", str(words.size)), words).with_lora()
        bundle.save(Path("run/crab.pt"), crab, words, tasks=list(TASKS), data="mini",
                    classes=json.loads(Path("mini/classes.json").read_text()))
        for second in range(12):
            small.picture(Path(f"frames/f{second}.jpg"), 20 * second, (90, 60))
        small.tone(Path("sound.ogg"), 7.2, rate=22050)
        small.tone(Path("long.wav"), 60)
        small.strip(Path("long.png"), 60)
        Path("text.wav").write_text("no sound")
        Path("empty").mkdir()
        yield folder
    torch.set_num_threads(threads)


@pytest.fixture
def knowing(here, monkeypatch):
    """The model says what the annotation says, and draws the mask that it has."""
    words = bundle.load(Path("run/crab.pt"))[1]
    rows = {row.uid: row for row in read_annotations("mini", "test")}

    def generate(self, batch, features, limit):
        answers, masks = Answers([], []), list(batch.masks if batch.masks is not None else [])
        for uid, feature in zip(batch.uids, features):
            row = rows[uid]
            groups = 0 if feature is None else len(row.fields["a_obj"].split(",")) if row.task == "avss" else 1
            answers.ids.append(words.encode(TASKS[row.task].answer(row.fields)))
            drawn = [20 * masks.pop(0) - 10 for _ in range(groups)]
            answers.masks.append(torch.stack(drawn) if drawn else torch.zeros(0, SIZE, SIZE))
        return answers
    monkeypatch.setattr(Crab, "generate", generate)


@pytest.fixture
def saying(here, monkeypatch):
    """saying(text): the model says this, with a mask of the left half for each group in it."""
    words = bundle.load(Path("run/crab.pt"))[1]

    def says(text: str):
        def generate(self, batch, features, limit):
            masks = torch.full((text.count("<mask_0>") * (features[0] is not None), SIZE, SIZE), -9.0)
            masks[..., :SIZE // 2] = 9
            return Answers([words.encode(text)], [masks])
        monkeypatch.setattr(Crab, "generate", generate)
    return says


def run(*words, status: int = 0) -> None:
    assert program.main(["--ckpt", "run/crab.pt", *QUICK, *map(str, words)]) == status


def test_a_model_that_knows_the_truth_scores_perfectly(knowing, capsys):
    run("--json", "out/scores.json", "--predictions", "out/said.jsonl")
    printed = capsys.readouterr().out
    content = json.loads(Path("out/scores.json").read_text())
    assert list(content["results"]) == list(TASKS) and content["facts"]["data"] == "mini"
    rounded = pytest.approx(0.9, abs=0.1)                   # corners are said in steps of seven pixels
    best = {"S (empty masks)": 0, "CIDEr": pytest.approx(10), "mean IoU": rounded, "AUC": rounded}
    for task, result in content["results"].items():
        assert result["unparsed"] == 0 and result["n"] > 2
        for score in result["scores"]:
            assert score["value"] == best.get(score["name"], pytest.approx(1)), (task, score)
            assert f"| {score['value']:.3f} " in printed and score["name"] in printed
    rows = [json.loads(line) for line in Path("out/said.jsonl").read_text().splitlines()]
    assert len(rows) == sum(r["n"] for r in content["results"].values()) == len({r["uid"] for r in rows})
    assert all(r["parsed"] and r["truth"] and r["scores"] and r["shuffle"] is None for r in rows)


def test_a_model_that_knows_nothing_scores_nothing(here, capsys):
    run("--json", "--task", "ave,s4,avqa")
    content = json.loads(capsys.readouterr().out)           # nothing else is printed there
    assert list(content["results"]) == ["ave", "s4", "avqa"]
    for task, result in content["results"].items():
        assert result["unparsed"] == result["n"] > 2 and all(s["value"] == 0 for s in result["scores"]), task


def test_shuffles_stand_beside_each_other(knowing, capsys):
    """The model of this test answers by the annotation: what it is shown changes nothing."""
    run("--task", "ave,ms3", "--shuffle", "audio,both", "--limit", "2", "--json", "s.json", "--predictions", "s.jsonl")
    printed = capsys.readouterr().out
    assert "sound shuffled | both shuffled" in printed and "pictures shuffled" not in printed
    assert "better than chance and baseline" in printed.splitlines()[-1]
    content = json.loads(Path("s.json").read_text())
    assert content["shuffled"] == {"audio": content["results"], "both": content["results"]}
    rows = [json.loads(line) for line in Path("s.jsonl").read_text().splitlines()]
    assert [r["shuffle"] for r in rows] == [None, None, "audio", "audio", "both", "both"] * 2


def test_shuffled_clips_reach_the_model(here, monkeypatch, capsys):
    at, taken = answering.partners, []
    monkeypatch.setattr(answering, "partners", lambda rows: taken.append(rows) or at(rows))
    run("--task", "arig", "--shuffle", "video")
    assert len(taken) == 1 and "pictures shuffled" in capsys.readouterr().out


def test_pictures_of_samples(knowing):
    run("--task", "ave,arig,avss,ref_avs", "--show", "2", "--out", "pictures")
    names = sorted(path.name for path in Path("pictures").iterdir())
    assert names == sorted(f"{task}_{k}.png" for task in ("ave", "arig", "avss", "ref_avs") for k in (0, 1))
    for name in names:
        image = np.asarray(Image.open(f"pictures/{name}"))
        assert image.shape[1] == 1000 and image.std() > 20
        red, green = ((image == colour).all(-1).sum() for colour in ((210, 50, 40), (30, 150, 60)))
        assert min(red, green) > (50 if "avss" not in name else 5), name       # both the truth and what was said


def test_bad_samples_stop_or_are_left_out(knowing, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree("mini", data)
    row = json.loads((data / "ave/test.json").read_text())[0]
    (data / "ave/audio" / row["audio_path"]).unlink()
    (data / "ave/audio" / row["audio_path"]).write_bytes(b"fLaC")
    run("--data", data, "--task", "ave", status=2)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("eval.py: ") and row["audio_path"] in error
    run("--data", data, "--task", "ave", "--skip-bad", "--json", tmp_path / "s.json")
    assert "--skip-bad leaves out 1 bad sample(s):" in capsys.readouterr().err
    assert json.loads((tmp_path / "s.json").read_text())["results"]["ave"]["n"] == 2
    shutil.rmtree(data / "s4")
    run("--data", data, "--task", "s4,arig", "--limit", "1")
    assert f"{data} has no test.json of s4: left out" in capsys.readouterr().err


OWN = ["--audio", "sound.ogg", "--frames", "frames"]


@pytest.mark.parametrize("words, text, told", [
    (["--task", "ave"], "<event> dog </event> <range> 1,3 </range>", "which event is both seen and heard"),
    (["--task", "ask", "--question", "what is it?"], "<answer> owl </answer>", "prompt: what is it?"),
    (["--task", "ref_avs", "--second", "2", "--expression", "the owl"], MASK_GROUP, "prompt: segment the owl at second 2."),
    (["--task", "ms3", "--second", "4"], f"the dog {MASK_GROUP}", "seconds: 0 1 2 3 4\n"),
    (["--task", "arig", "--second", "6"], "(1,2),(100,200)", "seconds: 6\n"),
    (["--task", "avvp"], "no audio event", "seconds: 0 1 2 3 4 5 6\n")])
def test_questions_about_one_s_own_files(saying, tmp_path, capsys, words, text, told):
    saying(text)
    run(*OWN, *words, "--out", tmp_path)
    printed = capsys.readouterr().out
    assert told in printed and "answer: " in printed and "no readable answer" not in printed
    task = words[1].replace("ask", "avqa")
    assert Image.open(tmp_path / f"{task}.png").width == 1000
    assert (tmp_path / f"{task}_mask.png").exists() == TASKS[task].masks
    if TASKS[task].masks:
        mask = np.asarray(Image.open(tmp_path / f"{task}_mask.png"))
        assert mask.shape == (60, 90) and (mask[:, :44] == 255).all() and not mask[:, 46:].any()
        assert "(50.0% of the frame)" in printed


def test_each_thing_that_sounds_gets_a_mask_of_its_own(saying, tmp_path, capsys):
    saying(f"a dog {MASK_GROUP}, the emergency car {MASK_GROUP}, xyz {MASK_GROUP}.")
    run("--audio", "sound.ogg", "--frames", "frames/f3.jpg", "--task", "avss", "--second", "5", "--out", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "avss.png", "avss_mask_0_dog.png", "avss_mask_1_emergency-car.png", "avss_mask_2_unknown.png"}
    saying("nonsense")
    run("--audio", "sound.ogg", "--frames", "frames/f3.jpg", "--task", "s4")
    assert "This is no readable answer of s4." in capsys.readouterr().out and not Path("run/shown").exists()


def sample(*words, **more):
    return sample_of(Request(*words, **more), 32)


def test_files_of_one_s_own_become_what_the_loader_would_have_made(here):
    folder, size = sample("ave", Path("frames"), Path("sound.ogg"))
    assert folder.seconds == list(range(7)) and folder.frames.shape == (7, 3, 32, 32) and folder.sounds.shape == (7, 16000)
    assert size == (90, 60) and folder.frames[5].float().mean() > folder.frames[4].float().mean() + 15
    still, _ = sample("ms3", Path("frames/f2.jpg"), Path("sound.ogg"), 3)
    assert still.seconds == [0, 1, 2, 3, 4] and still.target == 3 and (still.frames == still.frames[0]).all()
    one, _ = sample("s4", Path("long.png"), Path("long.wav"), 9)
    assert one.seconds == [9] and one.target == 0 and (one.frames == 180).all() and one.sounds.shape == (1, 16000)
    minute, size = sample("avqa", Path("long.png"), Path("long.wav"), question="?")
    assert minute.seconds == list(range(0, 60, 6)) and minute.sounds.shape == (10, 32000) and size == (small.SIDE,) * 2
    first, _ = sample("ave", Path("long.png"), Path("long.wav"))
    assert first.seconds == list(range(10)) and torch.equal(first.frames[:, 0, 0, 0], 20 * torch.arange(10).byte())


def test_a_sound_s_second_is_the_frame_s_second(here, tmp_path):
    wave = np.repeat(np.arange(1, 11) / 20, 16000)
    soundfile.write(tmp_path / "steps.wav", wave, 16000, subtype="FLOAT")
    found, _ = sample("arig", Path("frames"), tmp_path / "steps.wav", 7)
    assert found.sounds.numpy() == pytest.approx(0.4) and found.seconds == [7]
    assert abs(found.frames.float().mean() - (140 + 20)) < 3


def test_a_video_brings_its_own_sound(here, tmp_path):
    pytest.importorskip("av")
    small.video(tmp_path / "a.mp4", 4)
    found, size = sample("ave", tmp_path / "a.mp4")
    assert found.seconds == [0, 1, 2, 3] and size is None and found.sounds.abs().max() > 0.1


CANNOT = [
    (["--task", "s5"], "--task s5: no such task; nearest: s4"),
    (["--task", "ask"], "--task ask: needs --frames and --audio"),
    (["--shufle", "audio"], "--shufle: no such option; nearest: --shuffle"),
    (["--shuffle", "audio,sight"], "--shuffle: expected some of audio, video, both, found 'sight'"),
    (["--shuffle", "both", "--task", "ave", "--limit", "1"], "shuffling ave needs two clips or more"),
    (["--data", "nowhere"], "nowhere: data folder: missing"),
    (["--data", "empty"], "empty: data folder: no test.json in any of the task folders"),
    (["--limit", "0"], "--limit: expected at least 1, found 0"),
    (["--limit", "x"], "--limit: invalid int value: 'x'"),
    (["--out", "x"], "--out: is for the pictures of --show or --frames"),
    (["--question", "x"], "--question: needs --frames"),
    (["--second", "0"], "--second: needs --frames"),
    (["--show", "1", "--out", "text.wav/x"], "text.wav/x/ave_0.png: cannot be written"),
    (["--predictions", "empty"], "empty: cannot be written"),
    (["--json", "text.wav/x"], "text.wav/x: cannot be written"),
    (["--ckpt", "text.wav"], "text.wav: is damaged or no checkpoint"),
    (["--ckpt", "nix.pt"], "nix.pt: cannot be read: No such file"),
    (["--audio", "sound.ogg", "--task", "ave"], "--audio: needs --frames"),
    (["--frames", "frames", "--task", "ave"], "--frames of pictures needs --audio FILE"),
    ([*OWN], "--task: expected one for files of your own, found none"),
    ([*OWN, "--task", "aks"], "found aks; nearest: ask"),
    ([*OWN, "--task", "ask"], "--task ask needs --question"),
    ([*OWN, "--task", "ref_avs", "--second", "1"], "--task ref_avs needs --expression"),
    ([*OWN, "--task", "ms3"], "--task ms3 needs --second"),
    ([*OWN, "--task", "ms3", "--second", "5"], "--second 5: expected 0 to 4"),
    ([*OWN, "--task", "avss", "--second", "7"], "--second 7: expected 0 to 6"),
    ([*OWN, "--task", "s4", "--second", "-1"], "--second: expected at least 0, found -1"),
    ([*OWN, "--task", "ave", "--second", "1"], "--second: task ave takes none"),
    ([*OWN, "--task", "ave", "--data", "mini"], "--data: is for data sets, not for --frames and --audio"),
    ([*OWN, "--task", "ask", "--question", "<visual>?"], "expected no '<visual>', the model's own mark"),
    (["--audio", "text.wav", "--frames", "frames", "--task", "ave"], "text.wav: --audio: named .wav but holds"),
    (["--audio", "nix.wav", "--frames", "frames", "--task", "ave"], "nix.wav: --audio: missing"),
    (["--audio", "sound.ogg", "--frames", "nix", "--task", "ave"], "nix: --frames: missing"),
    (["--audio", "sound.ogg", "--frames", "empty", "--task", "ave"], "empty: --frames: folder without frames"),
    (["--audio", "sound.ogg", "--frames", "sound.ogg", "--task", "ave"], "sound.ogg: --frames: wrong extension"),
]


@pytest.mark.parametrize("words, line", CANNOT, ids=[" ".join(words) for words, _ in CANNOT])
def test_what_cannot_be_is_one_line_and_leaves_nothing_behind(here, capsys, words, line):
    before = sorted(Path(".").rglob("*"))
    run(*words, status=2)
    out, error = capsys.readouterr()
    error = error.splitlines()
    assert not out and error[-1].startswith("eval.py: ") and line in error[-1]
    assert not [text for text in error if "Traceback" in text] and sorted(Path(".").rglob("*")) == before


def test_a_model_whose_data_have_moved_says_so(here, tmp_path, monkeypatch, capsys):
    model = Path("run/crab.pt").absolute()
    monkeypatch.chdir(tmp_path)
    assert program.main(["--ckpt", str(model), *QUICK]) == 2
    assert "was trained on, mini, is not here: name one" in capsys.readouterr().err


def test_a_model_knows_its_classes_where_its_data_are_not(saying, tmp_path, monkeypatch, capsys):
    files = [str(Path(name).absolute()) for name in ("run/crab.pt", "sound.ogg", "frames")]
    content = torch.load(files[0], weights_only=True)
    content["facts"]["classes"][1] = "penguin"
    torch.save(content, tmp_path / "crab.pt")
    saying(f"penguin {MASK_GROUP}")
    monkeypatch.chdir(tmp_path)
    words = ["--audio", files[1], "--frames", files[2], "--task", "avss", "--second", "1", *QUICK]
    assert program.main(["--ckpt", "crab.pt", *words, "--out", "."]) == 0
    assert "penguin.png" in capsys.readouterr().out
