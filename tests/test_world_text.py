"""The world's marginals: no answer, place, time or category can be guessed; what trivial guessing scores is printed.

Boxes stand in for masks (nothing is drawn here); the real baselines are in every table that eval.py prints.
`pytest -s tests/test_world_text.py` shows the figures.
"""

import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from crab_mini.world.scene import CATEGORIES, SECONDS
from crab_mini.world.view import QUARTERS

from .scenes import rows, views

SCENES = 1500
SEGMENTED = {"s4": "frame_idx", "ms3": "frame_idx", "avss": "frame_idx", "ref_avs": "idx"}
CHANCE = {"ave": .53, "s4": .77, "ms3": .55, "avss": .54, "ref_avs": .41}       # what guessing may reach at most
MAJORITY = .60                                                                  # of one answer in a question's type
NAME = re.compile("|".join(CATEGORIES))


def share(values) -> dict:
    """Each value's share, the most frequent first."""
    counts = Counter(values)
    return {value: count / counts.total() for value, count in counts.most_common()}


def questions() -> dict[str, list[dict]]:
    found = defaultdict(list)
    for _, row in rows("avqa", SCENES):
        found[row["type"]].append(row)
    return found


def guessed(clue) -> dict[str, float]:
    """By type: what always saying the most frequent answer to questions with the same clue gets right."""
    score = {}
    for kind, found in questions().items():
        by_clue = defaultdict(list)
        for row in found:
            by_clue[clue(row["question"])].append(row["answer"])
        score[kind] = sum(Counter(answers).most_common(1)[0][1] for answers in by_clue.values()) / len(found)
    return score


def test_no_answer_of_a_question_s_type_is_the_majority():
    assert len(questions()) == 9 and min(map(len, questions().values())) > SCENES / 4
    for kind, found in questions().items():
        shares = share(row["answer"] for row in found)
        print(f"{kind:36s} {len(found):5d} questions, most frequent answer {next(iter(shares))}: "
              f"{next(iter(shares.values())):.2f}")
        assert next(iter(shares.values())) <= MAJORITY, kind


def test_a_question_s_wording_hardly_tells_its_answer():
    """Guessing from the words (without names and seconds), then from the second alone; no scene is looked at."""
    for what, clue in (("its words", lambda text: re.sub(r"\d+", "#", NAME.sub("X", text))),
                       ("its second", lambda text: "".join(re.findall(r"\d+", text)))):
        for kind, score in guessed(clue).items():
            print(f"{kind:36s} guessed from {what}: {score:.2f}")
            assert score <= 0.66, kind


def test_the_thing_named_first_is_the_answer_half_of_the_time():
    for kind in ('["Audio", "Comparative"]', '["Audio-Visual", "Comparative"]'):
        first = np.mean([NAME.findall(row["question"])[0] == row["answer"] for row in questions()[kind]])
        print(f"{kind}: the thing named first {first:.2f}")
        assert 0.45 < first < 0.55


def test_places_are_even():
    for kind in ('["Visual", "Location"]', '["Audio-Visual", "Location"]'):
        shares = share(row["answer"] for row in questions()[kind])
        assert set(shares) == set(QUARTERS) and max(shares.values()) < 0.32 and min(shares.values()) > 0.18, shares
    for task, second in SEGMENTED.items():
        shares = share(view.quarters[i, row[second]] for view, row in rows(task, SCENES) for i in row["targets"])
        assert max(shares.values()) < 0.34 and min(shares.values()) > 0.17, (task, shares)
    centres = [tuple((a + b) // 224 for a, b in zip(row["top_left"], row["bottom_right"]))
               for _, row in rows("arig", SCENES)]
    assert max(share(centres).values()) < 0.32 and min(share(centres).values()) > 0.18


def targets(task: str) -> list[str]:
    """The categories that a task's answers name."""
    if task == "ave":
        return [row["event"] for _, row in rows(task, SCENES)]
    if task == "arig":
        return [row["a_obj"] for _, row in rows(task, SCENES)]
    return [view.names[i] for view, row in rows(task, SCENES) for i in row["targets"]]


@pytest.mark.parametrize("task", ("ave", "arig", *SEGMENTED))
def test_categories_are_even(task):
    shares = share(targets(task))
    assert set(shares) == set(CATEGORIES) and max(shares.values()) < 0.14 and min(shares.values()) > 0.06, shares


def test_a_category_tells_neither_place_nor_time_nor_loudness():
    """Over all things of all scenes, each category's means are everybody's."""
    facts = defaultdict(list)
    for view in views(SCENES):
        for i, name in enumerate(view.names):
            on_screen, heard = view.visible[i].any(), view.audible[i].any()
            facts[name].append((on_screen, heard, view.centres[i, 0, 0] if on_screen else np.nan,
                                view.centres[i, 0, 1] if on_screen else np.nan,
                                view.gain[i].max() if heard else np.nan,
                                view.audible[i].argmax() / SECONDS if heard else np.nan))
    means = np.array([np.nanmean(facts[name], 0) for name in CATEGORIES])
    assert np.abs(means - means.mean(0)).max() < 0.08, means.round(2)


def test_seeing_a_thing_says_little_about_hearing_it():
    """Over things on screen and seconds: heard when seen against heard when not seen; and the other way round."""
    seen = np.concatenate([view.visible[view.visible.any(1)].ravel() for view in views(SCENES)])
    heard = np.concatenate([view.audible[view.visible.any(1)].ravel() for view in views(SCENES)])
    print(f"heard when seen {heard[seen].mean():.2f}, heard when not seen {heard[~seen].mean():.2f}")
    assert abs(heard[seen].mean() - heard[~seen].mean()) < 0.1
    assert 0.2 < heard[seen].mean() < 0.5


def test_no_second_and_no_span_is_the_usual_one():
    spans = [(row["start_time"], row["end_time"]) for _, row in rows("ave", SCENES)]
    for values, bound in ((spans, 0.08), ([a for a, _ in spans], 0.3), ([b for _, b in spans], 0.3),
                          ([b - a for a, b in spans], 0.3)):
        assert max(share(values).values()) < bound, share(values)
    for task, second in SEGMENTED.items():
        shares = share(row[second] for _, row in rows(task, SCENES))
        assert max(shares.values()) < (0.4 if task in ("s4", "ms3") else 0.2), (task, shares)
    starts = np.bincount([view.audible[i].argmax() for view in views(SCENES) for i in view.order(view.heard)])
    assert len(starts) >= SECONDS - 2 and starts.max() / starts.sum() < 0.35, starts


def all_visible(task: str) -> float:
    """Mean IoU of everything in the picture with what is asked for, on boxes; expressions that fit nothing left out."""
    overlaps = []
    for view, row in rows(task, SCENES):
        t = row[SEGMENTED[task]]
        sides = view.boxes[:, t, 2:] - view.boxes[:, t, :2]
        area = sides.prod(1)
        if row["targets"]:
            overlaps.append(area[row["targets"]].sum() / area[view.seen(t)].sum())
    return float(np.mean(overlaps))


@pytest.mark.parametrize("task", CHANCE)
def test_trivial_baselines_stay_where_the_targets_assume_them(task):
    if task == "ave":       # the right event, always 0-10: right in every second of its span
        score = np.mean([(row["end_time"] - row["start_time"]) / SECONDS for _, row in rows(task, SCENES)])
    else:
        score = all_visible(task)
    print(f"{task}: chance {score:.3f}, at most {CHANCE[task]}")
    assert 0.3 < score <= CHANCE[task]


def test_a_quarter_of_the_expressions_fit_nothing_and_their_words_do_not_tell_which():
    fits = defaultdict(list)
    for _, row in rows("ref_avs", SCENES):
        wording = re.sub("(top|bottom)-(left|right)", "P", NAME.sub("X", row["description"]))
        fits[wording].append(bool(row["targets"]))
    null = 1 - np.mean(sum(fits.values(), []))
    print(f"expressions that fit nothing: {null:.2f} of {sum(map(len, fits.values()))}")
    assert 0.15 < null < 0.35
    assert all(0.3 < np.mean(found) < 0.7 for found in fits.values() if not all(found))
