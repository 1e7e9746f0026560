"""The tenth task of data/README.md, taken from the page: it is read, checked, posed, parsed, scored and trained."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from . import small_av_uie as small

HOME = Path(__file__).parent.parent
BLOCK = re.search(r"^```python\n(.*?)^```$", (HOME / "data/README.md").read_text(), re.M | re.S)[1]
PROBE = """
import json, sys
from types import SimpleNamespace
import offscreen
from crab_mini.av_uie.rows import decode, read_annotations
from crab_mini.av_uie.__main__ import check
from crab_mini.evaluation.scoring import score
from crab_mini.tasks.base import TASKS, parse_tasks
task, root = TASKS["offscreen"], sys.argv[1]
rows = read_annotations(root, "test", parse_tasks("offscreen"))
answers = [SimpleNamespace(row=SimpleNamespace(row=row.fields), parsed=task.parse(task.answer(row.fields, on)))
           for row in rows for on in (True, False)]
answers += [SimpleNamespace(row=answers[0].row, parsed=task.parse("nonsense"))]
result = score("offscreen", answers, [])
print(json.dumps([len(decode(rows[0], 32).seconds), task.prompt(rows[0].fields), len(check(root, False).problems),
                  check(root, False).samples["offscreen"]["test"], result["n"], result["unparsed"],
                  result["scores"][0].value, result["scores"][0].baseline]))
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


def run(folder: Path, *words: str) -> str:
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True,
                          env={"PYTHONPATH": f"{HOME}:{folder}", "PATH": "", "HOME": str(folder)})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_short():
    assert len(BLOCK.splitlines()) < 45


def test_a_task_of_one_s_own_without_touching_the_model(folder):
    seconds, prompt, problems, complete, count, unparsed, accuracy, usual = json.loads(run(folder, "-c", PROBE, "set"))
    assert (seconds, problems, complete) == (10, 0, [4, 4]) and "not seen" in prompt
    assert (count, unparsed) == (9, 1) and accuracy == pytest.approx(8 / 9) and usual == pytest.approx(7 / 9)


@pytest.mark.slow
def test_it_trains_and_is_scored(folder):
    printed = run(folder, *"offscreen.py --data set --task offscreen --preset nano --max-steps 2 --out run".split())
    assert re.search(r"offscreen \| accuracy \| [01]\.\d+", printed) and (folder / "run/crab.pt").is_file()
