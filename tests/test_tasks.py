"""The nine tasks: what an annotation says is what its answer, parsed again, says; anything else is None."""

import random
import re

import pytest

from crab_mini import metrics
from crab_mini.tasks.avqa import question_type
from crab_mini.tasks.base import MASK_GROUP, TASKS, parse_tasks
from crab_mini.world.scene import CATEGORIES
from crab_mini.world.view import STEP, View

from .scenes import rows

SCENES = 60


def truth(task: str, view: View, row: dict):
    """What the parser must find, from the scene (or, where the scene does not say, from the row's other fields)."""
    if task == "ave":
        return row["event"], row["start_time"], row["end_time"]
    if task == "avvp":
        return {kind: [(view.names[i], a, b) for i in view.order(at) for a, b in metrics.runs(seconds[i])]
                for kind, at, seconds in (("audio", view.heard, view.audible), ("visual", view.seen, view.visible))}
    return row["answer"] if task == "avqa" else row["label_content"].split("<answer> ")[1].split(" </answer>")[0]


@pytest.mark.parametrize("reasoning", (True, False))
@pytest.mark.parametrize("task", ("ave", "avvp", "avqa", "avcap"))
def test_parsed_answers_say_what_the_row_says(task, reasoning):
    found = rows(task, SCENES)
    assert len(found) > SCENES / 5
    for view, row in found:
        assert TASKS[task].parse(TASKS[task].answer(row, reasoning)) == truth(task, view, row)


@pytest.mark.parametrize("inner", ("dog,(2 6),(7 8)", "dog, (2 6), (7 8)", "dog (2,6) (7,8)", "\ndog,\n( 2 6 ),(7 8)\n"))
def test_an_event_s_tags_hold_its_name_and_spans_however_they_are_spaced(inner):
    row = {"label_content": f"It barks. <audio_event>{inner}</audio_event> no visual event"}
    for text in (row["label_content"], TASKS["avvp"].bare(row)):
        assert TASKS["avvp"].parse(text) == {"audio": [("dog", 2, 6), ("dog", 7, 8)], "visual": []}
    assert TASKS["avvp"].events(row) == [("hear dog", 2, 6), ("hear dog", 7, 8)]


@pytest.mark.parametrize("reasoning", (True, False))
def test_a_parsed_box_is_the_row_s_to_the_nearest_step(reasoning):
    for _, row in rows("arig", SCENES):
        box = TASKS["arig"].parse(TASKS["arig"].answer(row, reasoning))
        assert all(abs(a - b) <= STEP / 2 + 1 for a, b in zip(box, row["top_left"] + row["bottom_right"]))
    assert TASKS["arig"].parse("not (1,2),(3,4) but (28, 7), (84,105).") == (28, 7, 84, 105)      # the last two corners


@pytest.mark.parametrize("reasoning", (True, False))
@pytest.mark.parametrize("task", ("s4", "ms3", "avss", "ref_avs"))
def test_mask_groups_are_found_with_the_names_before_them(task, reasoning):
    for _, row in rows(task, SCENES):
        groups = TASKS[task].parse(TASKS[task].answer(row, reasoning))
        names = row["a_obj"].split(",") if task == "avss" else [None]
        assert len(groups) == len(names)
        assert all(name is None or words.endswith(name) for words, name in zip(groups, names))


def test_captions_mention_what_is_seen_and_heard():
    for view, row in rows("avcap", SCENES):
        happened = view.visible.any(1) | view.audible.any(1)
        for reasoning in (True, False):
            caption = TASKS["avcap"].parse(TASKS["avcap"].answer(row, reasoning))
            assert re.match("A clip|One sees", caption) and caption.endswith(".")
            assert set(metrics.event_mentions(caption, CATEGORIES)) == {view.names[i] for i in happened.nonzero()[0]}


@pytest.mark.parametrize("text, caption", (("a dog barks", "a dog barks"), (" <answer> a dog </answer>.", "a dog"),
                                           ("a bell <answer> a dog", None), ("<answer> </answer>", None), (" ", None)))
def test_a_caption_is_what_the_tags_hold_or_all_where_there_are_none(text, caption):
    assert TASKS["avcap"].parse(text) == caption
    if caption:
        assert TASKS["avcap"].bare({"label_content": text}) == caption


def test_an_annotation_without_mask_tokens_gets_one_group_at_its_end():
    row = {"label_content": "The bell rings."}
    assert TASKS["s4"].answer(row) == f"The bell rings {MASK_GROUP}."
    assert len(TASKS["s4"].parse(TASKS["s4"].answer(row))) == 1


def test_a_clip_without_events_is_an_answer_and_not_garbage():
    row = {"label_content": "Audio: no audio event. Visual: no visual event."}
    for reasoning in (True, False):
        assert TASKS["avvp"].parse(TASKS["avvp"].answer(row, reasoning)) == {"audio": [], "visual": []}


GARBAGE = {
    "ave": ("<event> dog </event>", "<range> 2,6 </range>", "<event> dog </event> <range> 6,2 </range>",
            "<event> dog </event> <range> 2 6 </range>", "</event> dog <event> <range> 2,6 </range>"),
    "avvp": ("dog,(2 6)", "<audio_event> dog,(2 6) </visual_event>", "<audio_event> dog,(2 6)"),
    "avqa": ("two", "<answer> </answer>", "</answer> two <answer>", "<answer> two"),
    "arig": ("(10,20)", "(10,20),(5,30)", "(10,20),(30,10)", "10,20,30,40", "(10;20),(30;40)"),
    "avcap": ("   ",),
} | dict.fromkeys(("s4", "ms3", "avss", "ref_avs"), ("the dog", "<mask_start><mask_0><mask_1><mask_end>",
                                                    MASK_GROUP.replace("<mask_3>", ""), MASK_GROUP[:-1]))


@pytest.mark.parametrize("task", TASKS)
def test_what_is_no_answer_is_none(task):
    for text in ("", *GARBAGE[task]):
        assert TASKS[task].parse(text) is None, text


@pytest.mark.parametrize("task", TASKS)
def test_cut_and_shuffled_answers_are_read_or_refused_but_never_crash(task):
    rng = random.Random(1)
    for _, row in rows(task, SCENES)[:20]:
        text = TASKS[task].answer(row)
        pieces = re.findall(r"<[^>]*>|\w+|\W", text)
        TASKS[task].parse(text[:rng.randrange(len(text))])
        TASKS[task].parse("".join(rng.sample(pieces, len(pieces))))


def test_every_task_opens_in_its_own_words():
    """So that one task's reasoning is never continued in another's format."""
    openings = {task: {row[TASKS[task].answer_field].split()[0] for _, row in rows(task, SCENES)} for task in TASKS}
    for task, words in openings.items():
        others = set().union(*(openings[other] for other in TASKS if other != task))
        assert not words & others, task


def test_prompts_tell_the_tasks_apart():
    found = [TASKS[task].prompt(row) for task in TASKS for row in [rows(task, SCENES)[0][1]]]
    assert len(set(found)) == len(TASKS) and all(found)


def test_the_list_of_tasks_on_a_command_line():
    assert parse_tasks("all") == list(TASKS) and parse_tasks("s4, ave,s4") == ["s4", "ave"]
    for text, line in (("avs", "--task avs: no such task; nearest: "), ("", "no such task"), ("ave,xyz", "--task xyz")):
        with pytest.raises(ValueError, match=line):
            parse_tasks(text)


def test_a_question_s_type():
    assert question_type({"type": '["Audio-Visual", "Counting"]'}) == ("Audio-Visual", "Counting")
