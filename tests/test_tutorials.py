"""The tutorials: every exercise's check is itself graded, answers are put into the package, notebooks are not stale."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from crab_mini.config import LLMConfig, LoRAConfig
from crab_mini.model import attention as attention_file
from crab_mini.model import llm as llm_file
from crab_mini.model.llm import LLM
from crab_mini.model.lora import attach
from tutorials.check import UNCHANGED, check, examine, using
from tutorials.compare import difference
from tutorials.exercises import EXERCISES

from .tutorial_answers import ANSWERS

HOME = Path(__file__).parent.parent
FOLDER = HOME / "tutorials"
RIGHT = [(name, label) for name, known in ANSWERS.items() for label in known.right]
WRONG = [(name, label) for name, known in ANSWERS.items() for label in known.wrong]
SEEDS = (0, 1, 2)


# The checks ------------------------------------------------------------------------------------------------------------

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
    assert re.search(r"expected: \d.*\n  found:    \d", text)


@pytest.mark.parametrize("answer", [lambda *a, **k: None, lambda *a, **k: "garbage", lambda *a, **k: 1 / 0, lambda: 3,
                                    lambda *a, **k: sys.exit(), lambda *a, **k: object()])
@pytest.mark.parametrize("name", EXERCISES)
def test_whatever_an_answer_does_there_is_a_report(name, answer):
    report = examine(answer, name)
    assert report.state == "broken" and len(str(report).splitlines()) <= 6


def test_an_object_that_equals_everything_equals_nothing():
    class Sly(float):
        def __eq__(self, other):
            return True
        __hash__ = None
    assert difference(Sly(3), 4.0, 1e-4) and difference(Sly(3), None, 0) and difference([Sly(1)], ["a"], 0)


@pytest.mark.parametrize("found,expected", [(torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.0])),
                                            (torch.tensor([1.0]), torch.tensor(1.0)), (torch.tensor([1]), torch.tensor([True])),
                                            ((1, 2), (1, 2, 3)), ({"a": 1}, {"a": 2}), (True, 1), (None, 0.0), ("a", "b"),
                                            (float("nan"), 1.0), ([1.0, 2.0], torch.tensor([1.0, 2.0]))])
def test_differences_are_seen(found, expected):
    assert difference(found, expected, 1e-4)


def test_an_unknown_exercise_names_the_nearest():
    with pytest.raises(ValueError, match="no exercise atend; nearest: attend"):
        check(lambda: 0, "atend")


# An answer in the package's place -----------------------------------------------------------------------------------------

def small_llm() -> LLM:
    torch.manual_seed(0)
    return LLM(LLMConfig(vocab_size=23, dim=16, layers=2, heads=2, kv_heads=2, ffn_dim=24)).eval()


@pytest.mark.parametrize("name", [name for name, e in EXERCISES.items() if e.replaces and e.notebook in ("04", "05")])
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
    with pytest.raises(ValueError, match="using: masked_write is a part of crab_mini/model/crab.py: Crab.embed"), \
            using(masked_write):
        pass
