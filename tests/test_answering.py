"""Answers come in the rows' order whatever the batches; a shuffle exchanges what it says, with a clip that differs."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from crab_mini.bundle import build
from crab_mini.config import override, preset
from crab_mini.evaluation import generate as answering
from crab_mini.evaluation.generate import answer, limit_of, partners
from crab_mini.features.encoders import Features
from crab_mini.features.rows import Split
from crab_mini.model.crab import Answers
from crab_mini.tasks.base import TASKS
from crab_mini.tokenizer import Tokenizer
from crab_mini.world.write import write

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A nano model of random weights, its tokenizer, and the rows of a few clips."""
    folder, threads = tmp_path_factory.mktemp("answering") / "mini", torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRAB_KERNEL", "torch")
        write(folder, 9, 12, 64, cap=4, workers=1)
        words = Tokenizer.train(["heard: the bell is at second 3, so the answer is: dog."] * 3, 400)
        torch.manual_seed(0)
        crab = build(override(preset("nano"), "llm.vocab_size", str(words.size)), words).with_lora().eval()
        yield crab, words, Split(folder, "test", list(TASKS), Features(crab, CPU), words)
    torch.set_num_threads(threads)


def test_batches_do_not_change_answers_or_their_order(made, monkeypatch):
    crab, words, rows = made
    for task in ("avqa", "ms3"):
        together = answer(crab, words, rows, task, CPU, limit=12)
        monkeypatch.setattr(answering, "BATCH", 2)
        apart = answer(crab, words, rows, task, CPU, limit=12)
        assert [a.sample for a in together] == [a.sample for a in apart] == rows.of(task)
        assert [a.text for a in together] == [a.text for a in apart] and len({a.text for a in together}) > 1


class Told:
    """A model that says nothing and remembers what it was shown and told."""

    def __init__(self, rows):
        self.cfg, self.batches = rows.cfg, []

    def eval(self):
        return self

    def generate(self, batch, features, limit):
        self.batches.append((batch, features, limit))
        size = self.cfg.vision.image
        return Answers([[] for _ in features], [torch.zeros(0, size, size) for _ in features])


@pytest.mark.parametrize("shuffle, sight, sound", [(None, 0, 0), ("audio", 0, 1), ("video", 1, 0), ("both", 1, 1)])
@pytest.mark.parametrize("task", ["ave", "ms3", "s4"])
def test_a_shuffle_exchanges_what_it_says_and_nothing_else(made, monkeypatch, task, shuffle, sight, sound):
    _, words, rows = made
    monkeypatch.setattr(answering, "BATCH", 1)
    told, own = Told(rows), rows.of(task)
    said = answer(told, words, rows, task, CPU, shuffle=shuffle)
    assert [a.sample for a in said] == own and len(own) > 2
    pairs = dict(zip([row.uid for row in own], zip(own, partners(own))))
    seen, heard = rows.features.frames.array(), rows.features.sounds.array()
    for batch, (features,), _ in told.batches:
        pair = pairs[batch.uids[0]]
        assert torch.equal(batch.visual, seen[pair[sight].frames][:, rows.llm_layer])
        assert torch.equal(batch.audio, heard[pair[sound].sounds.flatten()])
        assert not torch.equal(batch.visual, seen[pair[1 - sight].frames][:, rows.llm_layer])
        prompt = words.encode(TASKS[task].prompt(pair[0].fields))
        assert batch.ids[0, -1 - len(prompt):-1].tolist() == prompt and not batch.loss_mask.any()
        if TASKS[task].masks:
            frame = pair[sight].frames[pair[0].target]
            assert torch.equal(features, seen[frame][rows.mask_layers])
        else:
            assert features is None


def test_a_shorter_partner_is_repeated(made):
    _, words, rows = made
    row, other = rows.of("ave")[:2]
    short = replace(other, frames=other.frames[:3], sounds=other.sounds[:4])
    item = rows.sequence(row, answer=False, frames_of=short, sounds_of=short)
    seen = rows.features.frames.array()[short.frames[torch.arange(10) % 3]][:, rows.llm_layer]
    assert torch.equal(item.visual, seen) and len(item.audio) == 10


def test_partners_differ_in_what_is_asked_for():
    def rows(task, *pairs):
        return [SimpleNamespace(task=task, clip=clip, fields=fields) for clip, fields in pairs]

    def chosen(task, *pairs):
        made = rows(task, *pairs)
        return [made.index(p) for p in partners(made)]
    dog, bell, both = dict(a_obj="dog"), dict(a_obj="Bell"), dict(a_obj="dog, bell")
    assert chosen("s4", ("a", dog), ("a", bell), ("b", dog), ("c", bell)) == [3, 2, 3, 0]
    assert chosen("s4", ("a", dog), ("b", both), ("c", dict(a_obj="dog "))) == [1, 2, 0]      # none differs: the next clip
    assert chosen("avvp", ("a", dict(event=["dog", "bell"])), ("b", dict(event="bell,owl")), ("c", dict(event="owl"))) == [2, 2, 0]
    one, two = dict(question="how many?", answer="1"), dict(question="how many?", answer="2")
    where = dict(question="where?", answer="1")
    assert chosen("avqa", ("a", one), ("b", where), ("b", one), ("c", two)) == [3, 3, 3, 0]
    captions = [("a", dict(label_content="x")), ("b", dict(label_content="y"))]
    assert chosen("avcap", *captions) == [1, 0]
    with pytest.raises(ValueError, match="shuffling s4 needs two clips or more, found only a"):
        partners(rows("s4", ("a", dog), ("a", bell)))


def test_sibling_frames_are_no_other_clip(made):
    _, _, rows = made
    for task in TASKS:
        own = rows.of(task)
        for row, other in zip(own, partners(own)):
            assert row.clip != other.clip and row.task == other.task
    clip = rows.of("ms3")[0].clip
    assert clip.endswith(".flac")


def test_an_answer_may_be_as_long_as_those_of_the_data_set(made):
    _, words, rows = made
    own = rows.of("avcap")
    long = replace(own[0], fields=own[0].fields | dict(label_content="dog " * 900))
    assert limit_of(rows, own, words) >= answering.LIMIT
    assert limit_of(rows, [*own, long], words) == int(1.25 * len(words.encode("dog " * 900))) > answering.LIMIT
    told = Told(rows)
    answer(told, words, rows, "avcap", CPU, limit=7)
    assert {limit for *_, limit in told.batches} == {7}
