"""Narration, 10,000 of them: one sense at a time, nothing joined, counted, compared, ordered or spanned, no task's words.

So the nine tasks are left to instruction tuning. What the tasks say and narration does not are added tokens.
"""

import re
from functools import cache

import numpy as np
import pytest

from crab_mini.stages.text import narrations, task_text
from crab_mini.tasks import TASKS
from crab_mini.tokenizer import MASKS, Tokenizer
from crab_mini.world.annotate import MASK, PLACES
from crab_mini.world.narration import KINDS, Narration, narrate
from crab_mini.world.scene import CATEGORIES, SECONDS

from .scenes import rows, views

COUNT = 10_000
HEARING, SEEING = r"heard|hear|sounds?|listen\w*|ears?", r"seen|see|look\w*|pictures?|eyes?|watch|corners?|map|paint|cut"
JOINED = r"both|together|silent|sounding|while|whereas|also|but|same"
COUNTED = r"how|many|count|two|three|four|number|times|different|objects?"
COMPARED = r"more|less|most|least|\w*er than|than|longer|shorter|louder|loudest|softer|either|or"
ORDERED = r"first|last|then|before|after|earlier|later|next|begins?|finally"
SPANNED = r"from|to|until|till|between|during|range|span|for|long|time|lasts?"


@cache
def told() -> tuple[Narration, ...]:
    rng = np.random.default_rng(11)
    return tuple(narrate(view, rng) for view in views(2500) for _ in range(COUNT // 2500))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    some = list(narrations(CATEGORIES, 0))
    return Tokenizer.train((row.prompt for row in some), 1500, (row.answer for row in some), task_text(CATEGORIES, 0))


def bare(row: Narration) -> str:
    """A narration's words without names of categories, whose letters mean nothing."""
    return re.sub("|".join(CATEGORIES), "X", f"{row.prompt} {row.answer}")


@cache
def vocabulary() -> dict[str, Narration]:
    """Each word that is ever told or asked, with a narration that has it: reading 10,000 once is enough."""
    return {word: row for row in told() for word in re.findall(r"[\w-]+", bare(row))}


@pytest.mark.parametrize("words", (JOINED, COUNTED, COMPARED, ORDERED, SPANNED))
def test_nothing_is_joined_counted_compared_ordered_or_spanned(words):
    assert len(told()) == COUNT and len(vocabulary()) > 100
    assert not {word: row for word, row in vocabulary().items() if re.fullmatch(words, word)}


def test_a_narration_reads_one_sense():
    senses = [re.compile(rf"\b(?:{words})\b") for words in (HEARING, SEEING)]
    for row in told():
        assert not all(sense.search(bare(row)) for sense in senses), row


def test_numbers_are_seconds_or_sides_of_boxes_and_never_stand_in_pairs():
    """A pair of seconds would be a span: `bird 2,6`, `bird (2 6)`."""
    for row in told():
        words = re.sub(r"\(\d+,\d+\),\(\d+,\d+\)|<mask_\d>", "", row.answer)            # without boxes
        pairs = re.findall(r"(?=\b(\d+)\)?[ ,-]+\(?(\d+))", words)
        assert all(int(b) == int(a) + 1 for a, b in pairs), row                         # the clock, ticking
        assert all(int(n) <= SECONDS for n in re.findall(r"\d+", words)), row


def test_no_task_s_prompt_opening_or_closing():
    prompts, openings, closings = set(), set(), set()
    for task in TASKS:
        for _, row in rows(task, 300):
            prompts.add(" ".join(re.findall(r"[\w-]+", TASKS[task].prompt(row))[:2]))
            answer = TASKS[task].answer(row)
            openings.add(re.match(r"[^:.]+[:.]", answer)[0])
            closings |= set(re.findall(r"(?:^|\. )((?:So|Map|Named|Sounding|The|Visual|<answer>)\b[^.]{0,12})", answer))
    assert len(prompts) > 8 and len(openings) >= len(TASKS) and closings
    for row in told():
        assert " ".join(re.findall(r"[\w-]+", row.prompt)[:2]) not in prompts, row
        assert not any(row.answer.startswith(opening) for opening in openings), row
        assert not any(closing in row.answer for closing in closings), row
        assert not re.search(r"</?(?!mask_)\w+>", row.answer), row          # no tag but the masks'


def test_every_id_of_the_tasks_is_told_or_added(tokenizer):
    said = {i for row in told() for i in tokenizer.encode(row.answer)}
    known = {i for text in task_text(CATEGORIES, 3, 600) for i in tokenizer.encode(text) if i < tokenizer.known}
    assert known <= said, [tokenizer.decode([i]) for i in known - said]
    assert all(tokenizer.ids[mask] < tokenizer.known for mask in MASKS)
    assert all(tokenizer.encode(tag)[0] >= tokenizer.known for tag in ("<event>", "</range>", "<answer>"))


def test_narration_is_read_and_said_in_the_llm_s_own_words(tokenizer):
    for row in told():
        assert max(tokenizer.encode(f"{row.prompt} {row.answer}")) < tokenizer.known, row


def test_who_is_where_is_true():
    rng = np.random.default_rng(2)
    for view in views(200):
        row = narrate(view, rng, {"placed": 1.0})
        for t, said in re.findall(r"(\d+) seen ([^.]*?)(?=, (?:at |second )?\d|\.)", row.answer):
            there = [f"{view.names[i]} {PLACES[view.place[i, int(t)]]}" for i in view.seen(int(t))]
            assert said == (", ".join(there) or "nothing"), row


@pytest.mark.parametrize("kind, at", (("hearing", "heard"), ("seeing", "seen")))
def test_what_is_told_second_by_second_is_true(kind, at):
    rng, name = np.random.default_rng(2), "|".join(CATEGORIES)
    for view in views(300):
        row = narrate(view, rng, {kind: 1.0})
        said, there, every = re.findall(r"\b(\d+)\b([^\d]*)", row.answer), set(), "coming" not in row.prompt
        for t in range(SECONDS):
            words = " ".join(w for second, w in said if int(second) == t)
            there = set() if every else there - set(re.findall(rf"\b({name}) stops", words))
            there |= {w for w, end in re.findall(rf"\b({name})\b( stops)?", words) if not end}
            assert there == {view.names[i] for i in getattr(view, at)(t)}, (t, row)


def test_mask_groups_have_their_things_in_the_shown_picture():
    rng = np.random.default_rng(3)
    found = [(view, narrate(view, rng, {"masked": 1.0})) for view in views(300) if view.visible.any(1).sum()]
    for view, row in found:
        assert len(row.targets) == row.answer.count(MASK) > 0 and row.at in row.seconds
        for group in row.targets:
            assert group and all(view.visible[i, row.at] and view.names[i] in row.answer for i in group)
    assert {len(row.targets) for _, row in found} >= {1, 2} and any(len(g) > 1 for _, row in found for g in row.targets)


def test_every_kind_is_told_in_several_wordings():
    rng = np.random.default_rng(4)
    for kind in KINDS:
        said = {re.sub(r"\d+", "#", bare(narrate(view, rng, {kind: 1.0})))[:14]
                for view in views(120) if view.visible.any()}
        assert len(said) >= 2, (kind, said)
