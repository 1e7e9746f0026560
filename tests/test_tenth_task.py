"""The tenth task of data/README.md, taken from the page: it is checked, drawn, trained and scored by the programs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crab_mini import bundle
from crab_mini.config import override, preset
from crab_mini.errors import DataError
from crab_mini.tasks import TASKS, load_plugin
from crab_mini.tokenizer import Tokenizer

from . import small_av_uie as small

HOME = Path(__file__).parent.parent
BLOCK = re.search(r"^```python\n(.*?)^```$", (HOME / "data/README.md").read_text(), re.M | re.S)[1]
QUICK = ["--precision", "fp32", "--kernel", "torch"]
SCORES = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
import torch
from crab_mini.evaluation.score import score
from crab_mini.tasks import TASKS, Answer, load_plugin
load_plugin(Path("offscreen.py"))
task = TASKS["offscreen"]
rows = json.loads(Path("set/offscreen/test.json").read_text())
texts = [(row, task.answer(row, reasoning)) for row in rows for reasoning in (True, False)] + [(rows[0], "nonsense")]
answers = [Answer(SimpleNamespace(task="offscreen", fields=row), text, torch.zeros(0)) for row, text in texts]
result = score("offscreen", answers, [])
print(json.dumps([result["n"], result["unparsed"], result["scores"][0].value, result["scores"][0].chance]))
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """The page's file, and a data set of its task: four clips, three of them with something off screen."""
    (tmp_path / "offscreen.py").write_text(BLOCK)
    rows = []
    for k, word in enumerate(("yes", "no", "yes", "yes")):
        small.strip(tmp_path / f"set/offscreen/video/{k}.png")
        small.tone(tmp_path / f"set/offscreen/audio/{k}.wav", hertz=300 + 100 * k)
        rows.append(dict(vid=k, answer=word, video_path=f"{k}.png", audio_path=f"{k}.wav",
                         label_content=f"Off screen: heard dog. <answer> {word} </answer>"))
    small.write(tmp_path / "set", "offscreen", rows)
    return tmp_path


def run(folder: Path, *words: str, status: int = 0) -> str:
    """What a program prints: on errors its last line, else its standard output."""
    words = [str(HOME / word) if word in ("train.py", "eval.py") else word for word in words]
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True,
                          env={"PYTHONPATH": str(HOME), "PATH": "", "HOME": str(folder), "OMP_NUM_THREADS": "1"})
    assert done.returncode == status, done.stderr
    return done.stderr.splitlines()[-1] if status == 2 else done.stdout


def test_it_is_short_and_touches_nothing_but_register():
    assert len(BLOCK.splitlines()) < 40
    assert re.findall(r"^from (crab_mini\S*) import", BLOCK, re.M) == ["crab_mini.tasks"]
    assert not re.search(r"TASKS|global|setattr", BLOCK) and BLOCK.count("register(") == 1


def test_its_answers_are_scored(folder):
    count, unparsed, accuracy, usual = json.loads(run(folder, "-c", SCORES))
    assert (count, unparsed) == (9, 1) and accuracy == pytest.approx(8 / 9) and usual == pytest.approx(7 / 9)


def test_it_is_checked_and_drawn(folder):
    av_uie = ["-m", "crab_mini.av_uie"]
    printed = run(folder, *av_uie, "check", "set", "--plugin", "offscreen.py")
    assert printed.count("4 of       4 samples complete") == 2 and "no problems in set" in printed
    rows = json.loads((folder / "set/offscreen/test.json").read_text())
    del rows[0]["answer"]
    small.write(folder / "set", "offscreen", rows, splits=("train",))
    printed = run(folder, *av_uie, "check", "set", "--plugin", "offscreen.py", status=1)
    assert "set/offscreen/train.json[0]: answer: missing key, expected non-empty text" in printed
    run(folder, *av_uie, "show", "set", "--plugin", "offscreen.py", "--task", "offscreen", "--out", "sample.png")
    assert Image.open(folder / "sample.png").width == 1000
    line = run(folder, *av_uie, "show", "set", "--task", "offscreen", "--out", "x.png", status=2)
    assert line.startswith("--task offscreen: no such task")


def test_eval_scores_it_draws_it_and_answers_about_one_s_own_files(folder):
    words = Tokenizer.train([BLOCK] * 3, 500)
    torch.manual_seed(0)
    crab = bundle.build(override(preset("nano"), "llm.vocab_size", str(words.size)), words).with_lora()
    bundle.save(folder / "crab.pt", crab, words, tasks=["offscreen"], data="set", classes=["background"])
    plugin = ["eval.py", "--ckpt", "crab.pt", "--plugin", "offscreen.py", *QUICK]
    printed = run(folder, *plugin, "--show", "1", "--out", "shown", "--predictions", "said.jsonl", "--limit", "2")
    assert re.search(r"offscreen \| accuracy \| [01]\.\d+", printed) and "the more frequent answer" in printed
    assert np.asarray(Image.open(folder / "shown/offscreen_0.png")).std() > 20
    lines = [json.loads(line) for line in (folder / "said.jsonl").read_text().splitlines()]
    assert [line["truth"] for line in lines] == ["yes", "no"]
    own = ["--audio", "set/offscreen/audio/0.wav", "--frames", "set/offscreen/video/0.png", "--task", "offscreen"]
    assert "prompt: is anything heard that is not seen?" in run(folder, *plugin, *own)
    line = run(folder, "eval.py", "--ckpt", "crab.pt", *QUICK, status=2)
    assert "unknown task 'offscreen'" in line


@pytest.mark.parametrize("text, told", [
    ("x = (", "cannot be loaded: SyntaxError"), ("import nix", "cannot be loaded: ModuleNotFoundError: No module named 'nix'"),
    ("x = 1", "registers no task: expected a call of register(...)"), (None, "cannot be loaded: FileNotFoundError"),
    (BLOCK.replace('"offscreen"', '"ave"'), "a task 'ave' is registered already")])
def test_a_file_that_is_no_plugin_is_one_line(tmp_path, text, told):
    if text is not None:
        (tmp_path / "offscreen.py").write_text(text)
    before = dict(TASKS)
    with pytest.raises(DataError) as caught:
        load_plugin(tmp_path / "offscreen.py")
    line = str(caught.value)
    assert "offscreen.py: --plugin: " in line and told in line and "\n" not in line
    assert TASKS == before


@pytest.mark.parametrize("program", ["train.py", "eval.py --ckpt crab.pt", "-m crab_mini.av_uie check set"])
def test_each_program_stops_at_a_plugin_that_cannot_be(folder, program):
    line = run(folder, *program.split(), "--plugin", "nix.py", status=2)
    assert "nix.py: --plugin: cannot be loaded: FileNotFoundError" in line
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == ["offscreen.py", "set"]


@pytest.mark.slow
def test_it_trains_and_is_scored(folder):
    words = "--plugin offscreen.py --data set --task offscreen --preset nano --max-steps 2 --out run".split()
    printed = run(folder, "train.py", *words)
    assert re.search(r"offscreen \| accuracy \| [01]\.\d+", printed) and (folder / "run/crab.pt").is_file()
