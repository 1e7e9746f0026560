"""Scores from answers: what is perfect, what is unreadable, what the yardsticks are, and how all of it is told."""

import json
import math
import re

import numpy as np
import pytest
import torch

from crab_mini.av_uie.samples import Sample
from crab_mini.evaluation import tables
from crab_mini.evaluation.score import score
from crab_mini.tasks.avqa import blind_guesses
from crab_mini.tasks.base import MASK_GROUP, TASKS
from crab_mini.tasks.class_names import AVSBENCH_CLASSES
from crab_mini.tasks.score import Answer, Score, measure

SIDE, CLASSES = 8, ("background", "bell", "dog", "sheep-dog")
LEFT, RIGHT, NONE = (torch.zeros(SIDE, SIDE, dtype=torch.bool) for _ in range(3))
LEFT[:, :3], RIGHT[2:, 5:] = True, True
FIELDS = dict(
    ave=[dict(event="Dog", start_time=2, end_time=6), dict(event="bell", start_time=0, end_time=3)],
    avvp=[dict(label_content=f"<audio_event> {a} </audio_event> <visual_event> {v} </visual_event>")
          for a, v in (("dog,(2 6)", "dog,(0 10)"), ("bell,(0 3),(5 6)", "dog,(1 4)"))],
    arig=[dict(label_content="(0,0),(100,100)"), dict(label_content="(120,120),(220,200)")],
    s4=[dict(a_obj="dog"), dict(a_obj="bell")], ms3=[dict(a_obj="dog, bell", frame_idx=3), dict(a_obj="dog", frame_idx=1)],
    avss=[dict(a_obj="dog, bell", frame_idx=3), dict(a_obj="dog", frame_idx=0)],
    ref_avs=[dict(description="the dog", idx=3), dict(description="the silent cat", idx=1)],
    avqa=[dict(question="is it?", answer="Yes", type='["Audio-Visual", "Existential"]'),
          dict(question="where is it?", answer="left", type=["Visual", "Location"])],
    avcap=[dict(label_content="A dog and a bell on a hill."), dict(label_content="Two sheep-dogs run.")])
MASKS = dict(s4=[[LEFT], [RIGHT]], ms3=[[LEFT | RIGHT], [LEFT]], avss=[[LEFT, RIGHT], [LEFT]], ref_avs=[[LEFT], [NONE]])


def row(task: str, k: int, **fields) -> Sample:
    """The k-th row of a task; everything visible is the dog on the left and the bell on the right."""
    masks = torch.stack(MASKS[task][k]) if task in MASKS else None
    everything = torch.where(LEFT, 2, torch.where(RIGHT, 1, 0))
    labels = (masks * torch.tensor([2, 1])[:len(masks), None, None]).amax(0) if task == "avss" else None
    box = [(0, 0, 100, 100), (120, 120, 220, 200)][k] if task == "arig" else None
    return Sample(task, f"{task}/test/{k}", f"clip {k}", FIELDS[task][k] | fields, torch.zeros(1), torch.zeros(1, 1), [0],
                  masks=masks, class_map=labels, visible=everything if masks is not None else None, box=box,
                  classes=CLASSES)


def perfect(task: str) -> list[Answer]:
    """Both rows answered as they should be, in capitals where they are no caption."""
    answers = []
    for k in range(2):
        prepared = row(task, k)
        text = TASKS[task].bare(prepared.fields)
        masks = torch.zeros(0, SIDE, SIDE) if prepared.masks is None else 20.0 * prepared.masks - 10
        answers.append(Answer(prepared, text, masks))
    return answers


def scores(task: str, answers: list[Answer]) -> dict[str, Score]:
    return {s.name: s for s in score(task, answers, ["dog", "bell", "sheep-dog"])["scores"]}


@pytest.mark.parametrize("task", TASKS)
def test_right_answers_score_perfectly(task):
    for name, s in scores(task, perfect(task)).items():
        best = {"S (empty masks)": 0, "AUC": 1, "CIDEr": 10}.get(name, 1)
        assert s.value == pytest.approx(best, abs=1e-6) and s.interval == pytest.approx((best, best), abs=1e-6), name
        assert s.n == {"Audio-Visual Existential": 1, "Visual Location": 1}.get(name, 2 if task != "ref_avs" else 1), name


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("text", ["", "no tag at all", "<mask_0> <mask_1>"])
def test_unreadable_answers_score_as_badly_as_can_be_and_are_counted(task, text):
    said = [Answer(row(task, k), text, 20.0 * torch.ones(0 if not text else 1, SIDE, SIDE)) for k in range(2)]
    readable = task == "avcap" and text
    assert score(task, said, ["dog"])["unparsed"] == (0 if readable else 2)
    for name, s in scores(task, said).items():
        assert s.value == (1 if name == "S (empty masks)" else 0) or (name == "precision" and math.isnan(s.value)), name
        assert list(map(type, s.interval)) == [float, float]


def test_tokens_outside_whole_groups_make_a_mask_unreadable():
    one, two = torch.ones(1, SIDE, SIDE), torch.ones(2, SIDE, SIDE)
    assert Answer(row("s4", 0), f"it is {MASK_GROUP}", one).parsed == ["it is"]
    assert Answer(row("s4", 0), f"it is <mask_0> {MASK_GROUP}", two).parsed is None
    assert Answer(row("s4", 0), f"it is {MASK_GROUP}", one[:0]).parsed is None


def test_names_are_compared_without_case_and_underscores():
    said = [Answer(row("ave", k), f"<event> {name} </event> <range> {span} </range>", torch.zeros(0))
            for k, (name, span) in enumerate((("DOG", "2,6"), ("Bell", "0,4")))]
    found = scores("ave", said)
    assert found["category"].value == 1 and found["exact range"].value == 0.5
    assert found["per-second accuracy"].value == 0.95 and found["per-second accuracy"].each.tolist() == [1, 0.9]
    said = [Answer(row("avvp", k), TASKS["avvp"].bare(FIELDS["avvp"][k]).replace("dog", "Dog"), torch.zeros(0))
            for k in range(2)]
    assert scores("avvp", said)["Type@AV events"].value == 1


def test_yardsticks_of_events_and_boxes():
    found = scores("ave", perfect("ave"))["per-second accuracy"]
    assert found.baseline == pytest.approx((4 + 3) / 20)
    # Seconds 0 and 1 are bell or background, 2 dog or bell, 3 to 5 dog or background, the rest background in both.
    assert found.chance == pytest.approx((6 * 0.5 + 4) / 10)
    found = scores("arig", perfect("arig"))
    assert found["cIoU"].baseline == 0 and found["cIoU"].chance == 0.5          # one of the two boxes
    iou = (157 - 120) ** 2 / (90 * 90 + 100 * 80 - (157 - 120) ** 2), (100 - 67) ** 2 / (90 * 90 + 100 * 100 - 33 ** 2)
    assert found["mean IoU"].baseline == pytest.approx(np.mean(iou)) and found["mean IoU"].chance == pytest.approx(0.5)
    usual = scores("avvp", perfect("avvp"))["V segments"]                       # the dog, always
    assert usual.chance == usual.baseline == pytest.approx((1 + 2 * 3 / 13) / 2)


def test_yardsticks_of_masks():
    found = scores("s4", perfect("s4"))["mIoU"]
    left, right = int(LEFT.sum()), int(RIGHT.sum())
    assert found.baseline == pytest.approx((left + right) / (left + right) / 2)
    assert found.chance == pytest.approx((left + right) / SIDE ** 2 / 2)
    s = scores("ref_avs", perfect("ref_avs"))["S (empty masks)"]
    assert s.lower and s.chance == 1 and s.baseline == pytest.approx(math.sqrt((left + right) / SIDE ** 2))
    found = scores("avss", perfect("avss"))["mIoU"]         # the second frame's bell makes no sound
    ground = [SIDE ** 2 - left - right, SIDE ** 2 - left]
    assert found.baseline == pytest.approx(((1 + ground[0] / ground[1]) / 2 + 1 + 1 / 2) / 3)
    assert found.chance == pytest.approx((ground[0] + ground[1]) / 2 / SIDE ** 2 / 3)
    answers = perfect("s4")
    answers[0].sample.visible = None                           # real data do not know what else is visible
    assert scores("s4", answers)["mIoU"].baseline is None


def test_a_class_map_takes_names_from_the_answer_and_overlaps_from_the_logits():
    prepared = row("avss", 0)
    both = 5.0 * torch.ones(2, SIDE, SIDE)
    both[1, :, 4:] = 9
    text = f"the sheep dog {MASK_GROUP}, a DOG {MASK_GROUP}, unicorn {MASK_GROUP}."
    said = TASKS["avss"].painted(Answer(prepared, text, torch.cat([both, both[:1]])))
    assert (said[:, :4] == 3).all() and (said[:, 4:] == 2).all()
    wrong = Answer(prepared, f"unicorn {MASK_GROUP}", both[:1])
    assert wrong.parsed and not TASKS["avss"].painted(wrong).any()


def test_what_the_annotation_s_map_shows_counts_also_where_a_obj_does_not_name_it():
    answers = perfect("avss")
    assert scores("avss", answers)["mIoU"].value == 1
    answers[1].sample.class_map = torch.where(RIGHT, 3, answers[1].sample.class_map)
    assert scores("avss", answers)["mIoU"].value < 0.8


def test_guesses_from_the_question_alone():
    kinds = ["which"] * 12 + ["is"] * 24 + ["rare"] * 2
    questions = [f"which is louder, the {a} or the {b}?" for a, b in [("dog", "bell"), ("bell", "owl"), ("owl", "dog")] * 4]
    truth = [re.findall("the (\\w+)", q)[-1] for q in questions[:9]] + ["dog", "bell", "owl"]
    questions += [f"is the dog at second {t}?" for t in range(12)] + [f"is the bell there at {t}?" for t in range(12)]
    truth += ["yes"] * 9 + ["no"] * 3 + ["no"] * 10 + ["yes"] * 2
    questions += ["how many?", "how many more?"]
    truth += ["2", "2"]
    right = blind_guesses(kinds, questions, truth, ["dog", "bell", "owl"])
    assert right[:12].tolist() == [1] * 9 + [0] * 3         # the last that is named
    assert right[12:24].sum() == 9 and right[24:36].sum() == 10         # each wording has an answer of its own
    assert right[36:].tolist() == [1, 1]


def test_question_types_have_majorities_of_their_own():
    rows = [dict(question="q", answer=a, type='["Audio", "Counting"]') for a in "112"] + \
           [dict(question="w", answer=a, type=["Visual", "Location"]) for a in ("left", "right", "right")]
    answers = [Answer(row("avqa", 0, **r), f"<answer> {r['answer']} </answer>" if k else "?", torch.zeros(0))
               for k, r in enumerate(rows)]
    found = scores("avqa", answers)
    assert found["exact match"].value == pytest.approx(5 / 6) and found["exact match"].baseline == pytest.approx(4 / 6)
    assert found["Audio Counting"].value == pytest.approx(2 / 3) and found["Visual Location"].value == 1
    assert found["Audio Counting"].n == 3 and not len(found["Audio Counting"].each)


def test_captions_are_pooled_and_the_baseline_is_another_clip_s():
    said = [Answer(row("avcap", k), text, torch.zeros(0)) for k, text in enumerate(("a dog", "a bell and a sheep-dog"))]
    found = scores("avcap", said)
    assert found["recall"].value == pytest.approx(2 / 3) and found["precision"].value == pytest.approx(2 / 3)
    assert found["recall"].each.tolist() == [0.5, 1] and found["precision"].each.tolist() == [1, 0.5]
    assert found["recall"].baseline == 0
    alone = scores("avcap", said[:1])
    assert alone["recall"].baseline is None and alone["CIDEr"].baseline is None
    nothing = scores("avcap", [Answer(row("avcap", 0, label_content="wind"), "rain", torch.zeros(0))])
    assert math.isnan(nothing["recall"].value) and math.isnan(nothing["precision"].value)


def test_samples_that_a_score_does_not_concern_have_no_part_in_it():
    s = measure("x", [1.0, np.nan, 0.0], baseline=[1.0, 7.0, 1.0])
    assert (s.value, s.n, s.baseline, s.chance) == (0.5, 2, 1.0, None)
    empty = measure("x", [np.nan], baseline=[1.0])
    assert math.isnan(empty.value) and empty.n == 0 and empty.baseline is None


def results(task: str, answers: list[Answer]) -> dict:
    return {task: score(task, answers, ["dog", "bell", "sheep-dog"])}


def test_the_table_has_a_line_a_score_and_says_what_the_yardsticks_are():
    text = tables.table(results("ave", perfect("ave")) | results("ref_avs", perfect("ref_avs")))
    lines = text.split("\n")
    assert len({line.count("|") for line in lines[:8]}) == 1 and len({len(line) for line in lines[:8]}) == 1
    assert "per-second accuracy" in text and "right event, always 0-10" in text and "lower is better" in text


def test_a_comparison_names_what_is_still_known():
    good, bad = perfect("ave"), [Answer(row("ave", k), "?", torch.zeros(0)) for k in range(2)]
    text = tables.comparison(results("ave", good), {"audio": results("ave", bad), "both": results("ave", bad)})
    head = [cell.strip() for cell in text.split("\n")[0].strip("|").split("|")]
    assert head[2:5] == ["as it is", "sound shuffled", "both shuffled"]
    first = [cell.strip() for cell in text.split("\n")[2].strip("|").split("|")]
    assert first[2:5] == ["1.000", "0.000", "0.000"] and text.endswith("no score is better than chance or its baseline")
    assert tables.comparison(results("ave", good), {"both": results("ave", good)}).endswith(
        "better than chance and baseline: ave per-second accuracy 1.000, ave category 1.000, ave exact range 1.000")
    assert "both shuffled:" not in tables.comparison(results("ave", good), {"video": results("ave", bad)})


@pytest.mark.parametrize("low, chance, baseline, lower, better", [
    (0.6, 0.5, 0.4, False, True), (0.6, 0.5, 0.7, False, False), (0.6, 0.7, 0.5, False, False), (0.6, 0.5, None, False, True),
    (0.6, None, None, False, False), (0.6, 0.5, 0.4, True, False), (0.5, 0.5, None, False, False)])
def test_better_than_chance_is_better_than_both_yardsticks_with_the_whole_interval(low, chance, baseline, lower, better):
    assert tables.knows(Score("x", 0.8, (low, 0.9), 9, baseline, chance=chance, lower=lower)) is better


@pytest.mark.parametrize("task", TASKS)
def test_lines_and_json_hold_all_that_was_scored(task):
    answers = perfect(task)
    answers[1] = Answer(answers[1].sample, "?", torch.zeros(0, SIDE, SIDE))
    found = results(task, answers)

    def no_constant(text):
        raise AssertionError(f"{text} is no JSON")
    content = json.loads(tables.as_json(found, {"both": found}, seed=3), parse_constant=no_constant)
    assert content["facts"] == {"seed": 3} and content["shuffled"]["both"] == content["results"]
    assert len(content["results"][task]["scores"]) == len(found[task]["scores"])
    rows = [json.loads(line, parse_constant=no_constant) for line in tables.lines(answers, found[task], "audio")]
    assert [r["uid"] for r in rows] == [f"{task}/test/{k}" for k in range(2)] and rows[0]["shuffle"] == "audio"
    assert rows[0]["prompt"] == TASKS[task].prompt(answers[0].sample.fields) and rows[1]["answer"] == "?"
    assert rows[0]["truth"] and (rows[1]["parsed"] is None or task == "avcap")
    for s in found[task]["scores"]:
        if len(s.each) and s.name not in ("F", "precision", "recall", "mIoU"):
            each = [r["scores"][s.name] for r in rows if r["scores"][s.name] is not None]
            assert np.mean(each) == pytest.approx(s.value) and len(each) == s.n, s.name


def test_classes_of_avsbench_are_the_default():
    prepared = row("avss", 0)
    prepared.classes = AVSBENCH_CLASSES
    said = TASKS["avss"].painted(Answer(prepared, f"Map: emergency-car {MASK_GROUP}", torch.ones(1, SIDE, SIDE)))
    assert (said == AVSBENCH_CLASSES.index("emergency-car")).all()
