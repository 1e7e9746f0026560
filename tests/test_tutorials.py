"""The tutorials: every exercise's check is itself graded, and notebooks belong to their sources."""

import ast
import inspect
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from crab_mini.config import LLMConfig, LoRAConfig
from crab_mini.model import attention as attention_file
from crab_mini.model import llm as llm_file
from crab_mini.model.llm import LLM
from crab_mini.model.lora import attach
from tutorials import build
from tutorials.check import UNCHANGED, check, examine, using
from tutorials.compare import difference
from tutorials.exercises import EXERCISES
from tutorials.submission import SubmissionError, read

from .tutorial_answers import ANSWERS

HOME = Path(__file__).parent.parent
FOLDER = HOME / "tutorials"
RIGHT = [(name, label) for name, known in ANSWERS.items() for label in known.right]
WRONG = [(name, label) for name, known in ANSWERS.items() for label in known.wrong]
SEEDS = (0, 1)


# The checks -------------------------------------------------------------------------------------


def test_every_exercise_is_graded_by_enough_answers():
    assert set(ANSWERS) == set(EXERCISES) and len(EXERCISES) >= 25
    for name, known in ANSWERS.items():
        assert len(known.right) >= 2 and len(known.wrong) >= 3, name
    assert len(WRONG) >= 90
    assert {e.notebook for e in EXERCISES.values()} == {f"{n:02}" for n in range(1, 14)}


@pytest.mark.parametrize("name", EXERCISES)
def test_a_stub_is_not_done_yet_and_never_an_error(name, capsys):
    check(EXERCISES[name].stub)
    assert capsys.readouterr().out == f"{name}: not done yet\n"


@pytest.mark.parametrize("name,label", RIGHT, ids=map("-".join, RIGHT))
def test_a_right_answer_passes(name, label):
    for seed in SEEDS:
        report = examine(ANSWERS[name].right[label], name, seed)
        assert report.state == ("package" if "package" in label else "passed"), str(report)


@pytest.mark.parametrize("name,label", WRONG, ids=map("-".join, WRONG))
def test_a_wrong_answer_is_rejected_for_its_reason(name, label):
    answer, reason = ANSWERS[name].wrong[label]
    named = [rule.name for rule in EXERCISES[name].properties if rule.name.startswith(reason)]
    assert len(named) == 1 or UNCHANGED.startswith(reason), f"{reason!r} is no property of {name}"
    for seed in SEEDS:
        report = examine(answer, name, seed)
        assert report.state == "broken" and report.broken.startswith(reason), str(report)
        assert report.hint and report.shown and report.found


@pytest.mark.parametrize("name", EXERCISES)
def test_the_package_s_own_function_is_recognised(name):
    exercise = EXERCISES[name]
    assert (HOME / exercise.where().split(":")[0]).is_file(), "solutions are named by file"
    if exercise.package_answer is None and not exercise.replaces:
        pytest.skip("held to properties alone: the package computes it in the middle of a function")
    report = examine(lambda *a, **k: exercise.original()(*a, **k), name)
    assert report.state == "package", str(report)


def test_a_report_names_property_hint_and_smallest_input():
    text = str(examine(ANSWERS["rms_norm"].wrong["eps_outside"][0], "rms_norm"))
    assert "broken:   eps stands under the root" in text and "hint:" in text
    assert "input:    x = [0.0003, 0.0004], weight = [1.0, 1.0], eps = 1e-05" in text
    assert text in (FOLDER / "README.md").read_text(), "the page shows this very report"


@pytest.mark.parametrize(
    "answer",
    [
        lambda *a, **k: None,
        lambda *a, **k: "garbage",
        lambda *a, **k: 1 / 0,
        lambda: 3,
        lambda *a, **k: sys.exit(),
        lambda *a, **k: object(),
    ],
)
@pytest.mark.parametrize("name", EXERCISES)
def test_whatever_an_answer_does_there_is_a_report(name, answer):
    report = examine(answer, name)
    assert report.state == "broken" and len(str(report).splitlines()) <= 6


def test_an_object_that_equals_everything_equals_nothing():
    class Sly(float):
        def __eq__(self, other):
            return True

        __hash__ = None

    assert (
        difference(Sly(3), 4.0, 1e-4)
        and difference(Sly(3), None, 0)
        and difference([Sly(1)], ["a"], 0)
    )


@pytest.mark.parametrize(
    "found,expected",
    [
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.0])),
        (torch.tensor([1.0]), torch.tensor(1.0)),
        (torch.tensor([1]), torch.tensor([True])),
        ((1, 2), (1, 2, 3)),
        ({"a": 1}, {"a": 2}),
        (True, 1),
        (None, 0.0),
        ("a", "b"),
        (float("nan"), 1.0),
        ([1.0, 2.0], torch.tensor([1.0, 2.0])),
    ],
)
def test_differences_are_seen(found, expected):
    assert difference(found, expected, 1e-4)


def test_an_unknown_exercise_names_the_nearest():
    with pytest.raises(ValueError, match="no exercise atend; nearest: attend"):
        check(lambda: 0, "atend")


# An answer in the package's place ---------------------------------------------------------------


def small_llm() -> LLM:
    torch.manual_seed(0)
    return LLM(LLMConfig(vocab_size=23, dim=16, layers=2, heads=2, kv_heads=2, ffn_dim=24)).eval()


@pytest.mark.parametrize(
    "name", [name for name, e in EXERCISES.items() if e.replaces and e.notebook in ("04", "05")]
)
def test_a_model_computes_the_same_with_a_right_answer_in_it(name):
    llm, ids = small_llm(), torch.arange(10).reshape(2, 5)
    before, said = llm(ids), llm.generate(ids, 4)
    for label, answer in ANSWERS[name].right.items():
        answer.__name__ = name
        with using(answer):
            torch.testing.assert_close(llm(ids), before, atol=1e-4, rtol=1e-4, msg=label)
            assert torch.equal(llm.generate(ids, 4), said), label
    assert torch.equal(llm(ids), before)


def test_a_wrong_answer_in_the_model_is_felt_and_is_gone_afterwards():
    llm, ids = small_llm(), torch.arange(10).reshape(2, 5)
    before, attend = llm(ids), attention_file.attend
    answer = ANSWERS["attend"].wrong["causal_ignored"][0]
    answer.__name__ = "attend"
    with pytest.raises(RuntimeError, match="on the way"), using(answer):
        assert llm_file.attend is answer and not torch.allclose(llm(ids), before, atol=1e-3)
        raise RuntimeError("on the way")
    assert llm_file.attend is attention_file.attend is attend and torch.equal(llm(ids), before)


def test_a_lora_answer_is_the_layers_own():
    llm, ids = small_llm(), torch.arange(10).reshape(2, 5)
    layers = attach(llm.blocks, LoRAConfig(rank=2, heads=3))
    for layer in layers:
        torch.nn.init.normal_(layer.lora_B)
    before = llm(ids)
    for label in ("lora_by_heads", "lora_by_einsum", "sigmoid"):
        answer = ANSWERS["lora_forward"].right.get(label) or ANSWERS["lora_forward"].wrong[label][0]
        answer.__name__ = "lora_forward"
        with using(answer):
            same = torch.allclose(llm(ids), before, atol=1e-3)
        assert same == (label != "sigmoid"), label


def test_a_part_of_a_function_cannot_be_replaced():
    def masked_write(embeds, slots, tokens):
        return embeds

    with (
        pytest.raises(
            ValueError, match="using: masked_write is a part of crab_mini/model/crab.py: Crab.embed"
        ),
        using(masked_write),
    ):
        pass


def test_a_parser_is_put_into_its_task():
    from crab_mini.tasks.base import TASKS

    def parse_ave(text):
        return "mine", 0, 1

    with using(parse_ave):
        assert TASKS["ave"].parse("") == ("mine", 0, 1)
    assert TASKS["ave"].parse("") is None


# The grading command ----------------------------------------------------------------------------

GOOD_AND_BAD = """
import os, subprocess, sys
import torch
from crab_mini.model.attention import attend
print("garbage" * 10000, file=sys.stderr)
HIDDEN = [torch.ones(1)]

def rms_norm(x, weight, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight

def apply_rotary(x, cos, sin):
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)

def cells_of(h, w, grid, queries):
    raise NotImplementedError

def mask_iou(pred, target):
    if os.fork() == 0:
        os._exit(0)

def parse_ave(text):
    try:
        subprocess.run(["true"])
    except BaseException:
        pass
    return ("dog", 2, 6)

def parse_avvp(text):
    sys.exit(0)

def parse_arig(text):
    raise KeyboardInterrupt

def bce_loss(logits, target):
    return torch.ones(10 ** 12)

def dice_loss(logits, target):
    return bytearray(3 * 10 ** 9)

dice_loss_of_mine = 3
schedule = "not a function"

def usual_answer(truth):
    for pipe in range(3, 64):
        try:
            os.write(pipe, b'{"event": "result", "name": "schedule", "state": "passed", "reason": ""}\\n\\xff')
        except OSError:
            pass
    return max(map(truth.count, truth)) / len(truth)
"""

DEADLY = """
import ctypes, os, time

def rms_norm(x, weight, eps):
    while True:
        pass

def mask_iou(pred, target):
    os._exit(3)

def schedule(step, progress, warmup):
    return ctypes.string_at(0)

def usual_answer(truth):
    return max(map(truth.count, truth)) / len(truth)
"""


def graded(file: Path, *words: str) -> dict:
    """What the command prints with --json, exercise by exercise."""
    done = subprocess.run(
        [sys.executable, "-m", "tutorials.grade", str(file), "--json", *words],
        cwd=HOME,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    result = json.loads(done.stdout)
    return {"points": (result["points"], result["of"])} | {
        e["exercise"]: e for e in result["exercises"]
    }


def test_each_answer_of_a_file_is_graded_whatever_the_others_do(tmp_path):
    (tmp_path / "answers.py").write_text(GOOD_AND_BAD)
    found = graded(tmp_path / "answers.py", "--seed", "5", "--memory", "600")
    states = {name: e["state"] for name, e in found.items() if name != "points"}
    assert states == dict(
        rms_norm="passed",
        apply_rotary="broken",
        cells_of="not done yet",
        mask_iou="processes",
        parse_ave="processes",
        parse_avvp="broken",
        parse_arig="broken",
        bce_loss="memory",
        dice_loss="memory",
        schedule="broken",
        usual_answer="passed",
        attend="package",
    )
    assert found["points"] == (2, sum(EXERCISES[name].points for name in states))
    assert found["apply_rotary"]["reason"].startswith(
        "dimension i belongs to i + size/2 (hint: halves"
    )
    assert (
        "SystemExit" in found["parse_avvp"]["reason"]
        and "KeyboardInterrupt" in found["parse_arig"]["reason"]
    )
    assert found["attend"]["passed"] is False and found["rms_norm"]["passed"] is True


@pytest.mark.slow
def test_hanging_exiting_and_crashing_answers_are_graded_as_such(tmp_path):
    (tmp_path / "answers.py").write_text(DEADLY)
    found = graded(tmp_path / "answers.py", "--seconds", "6", "--notebook", "10")
    assert found["mask_iou"]["reason"] == "ended the process with status 3"
    assert {e["state"] for name, e in found.items() if name not in ("points", "mask_iou")} == {
        "missing"
    }
    found = graded(tmp_path / "answers.py", "--seconds", "6")
    assert (
        found["rms_norm"]["reason"] == "takes longer than 6 s" and found["usual_answer"]["passed"]
    )
    assert found["schedule"]["reason"] == "was ended by SIGSEGV"


@pytest.mark.slow
@pytest.mark.parametrize(
    "line,reason",
    [
        ("while True: pass", "takes longer than 6 s"),
        ("1 / 0", "ZeroDivisionError"),
        ("import os; os._exit(0)", "ended the process with status 0"),
        ("raise SystemExit", "SystemExit"),
    ],
)
def test_a_file_that_does_not_load_is_graded_as_such(tmp_path, line, reason):
    (tmp_path / "answers.py").write_text(f"def rms_norm(x, weight, eps):\n    return x\n{line}\n")
    found = graded(tmp_path / "answers.py", "--seconds", "6")
    assert (
        found["rms_norm"]["reason"].startswith("the file does not load")
        and reason in found["rms_norm"]["reason"]
    )


def cell(kind: str, *lines: str) -> dict:
    return dict(
        cell_type=kind,
        metadata={},
        source="\n".join(lines),
        **({"outputs": []} if kind == "code" else {}),
    )


def test_of_a_notebook_definitions_and_constants_count(tmp_path):
    cells = [
        cell("markdown", "# words"),
        cell("code", "%matplotlib inline", "from lesson import check", "import math"),
        cell(
            "code",
            "HALF = 1 / 2",
            "heavy = sum(range(10**12))",
            "def attend(q):",
            "    return HALF",
            "attend(1)",
        ),
        cell("code", "this is no python"),
        cell("code", "double = lambda x: 2 * x"),
    ]
    (tmp_path / "04_mine.ipynb").write_text(json.dumps(dict(cells=cells, nbformat=4)))
    found = read(tmp_path / "04_mine.ipynb")
    assert found.names == ["check", "math", "HALF", "attend", "double"] and "heavy" not in "".join(
        found.statements
    )
    assert found.notes == ["code cell 3 is left out: SyntaxError"] and found.tolerant


@pytest.mark.parametrize(
    "name,content",
    [
        ("a.py", b"\xff\xfe\x00"),
        ("a.py", b"def ("),
        ("a.ipynb", b"{}"),
        ("a.ipynb", b"[1"),
        ("a.ipynb", b'{"cells": 3}'),
        ("missing.py", None),
    ],
)
def test_what_is_no_submission_is_one_line(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SubmissionError) as caught:
        read(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)


# The notebooks ----------------------------------------------------------------------------------


def tools_or_skip():
    """The builder, where jupytext and the others are installed."""
    for name in build.NEEDED:
        pytest.importorskip(name)


SOURCES = build.sources()
BOOKS = [build.target_of(source) for source in SOURCES]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_belongs_to_its_source_and_keeps_its_limits(source):
    assert build.staleness(source) is None
    text = build.target_of(source).read_text()
    book = json.loads(text)
    assert not build.problems(book, book["metadata"]["crab_mini"]["seconds"], len(text.encode()))
    assert "{{" not in text and all(
        cell["outputs"] or cell["execution_count"]
        for cell in book["cells"]
        if cell["cell_type"] == "code"
    )


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_source_is_whole(source):
    text = source.read_text()
    number = source.stem[:2]
    assert text.startswith(f"# %% [markdown]\n# # {number} ") and build.MEASURED in text
    assert "## Three questions to think about" in text and text.count("\n# 3. ") == 1
    assert '"this notebook runs in the folder tutorials/' in text
    used = {
        alias.name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    used |= {
        node.module.split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom)
    }
    assert used <= {"lesson", "crab_mini", "torch", "numpy", *sys.stdlib_module_names}, used


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_s_stubs_are_its_exercises_own(source):
    tree = ast.parse(source.read_text())
    found = {
        node.name: node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name in EXERCISES
    }
    checked = {
        node.value.args[0].id
        for node in tree.body
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and getattr(node.value.func, "id", "") == "check"
    }
    own = {name for name, e in EXERCISES.items() if e.notebook == source.stem[:2]}
    assert checked == set(found) == own
    for name, node in found.items():
        stub = ast.parse(textwrap.dedent(inspect.getsource(EXERCISES[name].stub))).body[0]
        stub.decorator_list = []
        assert ast.dump(stub) == ast.dump(node), (
            f"{name} in {source.name} is not the stub of its exercise file"
        )


def test_the_page_lists_what_is_there():
    page = (FOLDER / "README.md").read_text()
    for number in range(1, 14):
        row = re.search(rf"^\| {number:02} \| .*$", page, re.M)[0]
        book = [path for path in BOOKS if path.name.startswith(f"{number:02}_")]
        assert ("there" in row.split("|")[3]) == bool(book), row
        assert set(re.findall(r"`(\w+)`", row)) == {
            n for n, e in EXERCISES.items() if e.notebook == f"{number:02}"
        }, row
        assert re.findall(r"\((.*?)\)", row) == [path.name for path in book], row


@pytest.mark.parametrize(
    "change,words",
    [
        (
            lambda book: book["cells"].extend([dict(cell_type="markdown", source="x")] * 41),
            "at most 40 cells",
        ),
        (
            lambda book: book["cells"][0].update(source="see https://example.org"),
            "links inside the project",
        ),
        (lambda book: book["cells"][0].update(source="![a](a.png)"), "a picture's link"),
        (
            lambda book: book["cells"][1]["outputs"].append(
                dict(output_type="error", ename="E", evalue="why")
            ),
            "raised E",
        ),
        (
            lambda book: book["cells"][1]["outputs"].append(
                dict(output_type="stream", name="stderr", text="oh")
            ),
            "stderr",
        ),
        (
            lambda book: book["cells"][1]["outputs"].append(
                dict(output_type="display_data", data={"image/svg+xml": ""})
            ),
            "PNG",
        ),
    ],
)
def test_what_breaks_a_limit_is_said(change, words):
    book = dict(
        cells=[
            dict(cell_type="markdown", source="# words, [a link](README.md)"),
            dict(cell_type="code", source="1", outputs=[]),
        ]
    )
    assert not build.problems(book, 1.0, 10)
    change(book)
    assert words in "; ".join(build.problems(book, 1.0, 10))


def test_too_slow_and_too_large_is_said():
    found = "; ".join(build.problems(dict(cells=[]), 61.0, 200_001))
    assert "at most 60 s" in found and "at most 200 KB" in found


def test_a_changed_source_makes_its_notebook_stale(tmp_path, monkeypatch):
    (tmp_path / "src").mkdir()
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    source = tmp_path / "src/02_x.py"
    source.write_text("# %%\n1\n")
    assert "is not built" in build.staleness(source)
    (tmp_path / "02_x.ipynb").write_text(
        json.dumps(dict(metadata=dict(crab_mini=build.wanted_hashes(source))))
    )
    assert build.staleness(source) is None
    source.write_text("# %%\n2\n")
    assert "is older than src/02_x.py" in build.staleness(source)


def test_an_unknown_notebook_and_missing_tools_are_one_line(monkeypatch, capsys):
    assert build.main(["77"]) == 2 and "there is no notebook 77" in capsys.readouterr().err
    monkeypatch.setattr(build, "NEEDED", ("jupytext", "no_such_tool"))
    assert build.main(["02"]) == 1
    assert re.fullmatch(
        r"error: building notebooks needs .*no_such_tool: pip install -e '\.\[dev,tutorials\]'\n",
        capsys.readouterr().err,
    )


def test_a_notebook_s_first_cell_says_what_is_missing():
    def run(code: str, *options: str) -> str:
        done = subprocess.run(
            [sys.executable, *options, "-c", code],
            cwd=FOLDER,
            capture_output=True,
            text=True,
            env={"PATH": "", "HOME": "/tmp"},
        )
        assert done.returncode == 1
        return done.stderr.strip()

    hide = "import sys; sys.modules['{}'] = None; import lesson"
    for name, words in (
        ("torch", "has no torch: run there"),
        ("matplotlib", "the tutorials draw with matplotlib: pip install"),
    ):
        said = run(hide.format(name))
        assert words in said and "\n" not in said


def test_nothing_in_the_package_imports_what_notebooks_need():
    for path in (HOME / "crab_mini").rglob("*.py"):
        assert not re.search(
            r"^\s*(?:import|from) (jupytext|nbclient|nbformat|matplotlib|tutorials|IPython)",
            path.read_text(),
            re.M,
        ), path


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_runs(source):
    tools_or_skip()
    import jupytext

    book = jupytext.read(source)
    seconds, peak = build.execute(source, book)
    assert (
        seconds
        and not build.problems(json.loads(jupytext.writes(book, fmt="ipynb")), seconds, 0)
        and peak < 2000
    )
