"""The Python API: what it answers is what eval.py answers, from files and from tensors, and what it shows is the model's."""

import re
from dataclasses import replace

import pytest
import torch

import crab_mini
import eval as program
from crab_mini import bundle
from crab_mini.api import TAGGED, Reply
from crab_mini.av_uie.media import read_audio, read_image
from crab_mini.config import ConfigError, override, preset
from crab_mini.errors import CheckpointError, DataError
from crab_mini.tasks.score import Answer
from crab_mini.tokenizer import Tokenizer

from . import small_av_uie as small

SECONDS = 4
TEXTS = ["so the event is dog at second 3, which object is heard first? segment the object", "0 1 2 3 4 5 6 7 8 9"]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a clip of four seconds, and a model that knows nothing."""
    folder = tmp_path_factory.mktemp("api")
    for second in range(SECONDS):
        small.picture(folder / f"frames/{second}.png", 40 * second, (64, 64))
    small.tone(folder / "sound.wav", SECONDS)
    tokenizer = Tokenizer.train(TEXTS * 20, 330)
    torch.manual_seed(0)
    crab = bundle.build(override(preset("nano"), "llm.vocab_size", str(tokenizer.size)), tokenizer).with_lora("torch")
    bundle.save(folder / "crab.pt", crab, tokenizer, tasks=["avqa"], classes=["background", "dog"], data="nowhere")
    return folder


@pytest.fixture(scope="module")
def crab(here):
    return crab_mini.load(here / "crab.pt", kernel="torch")


def test_the_answer_is_that_of_eval_py(here, crab, capsys):
    reply = crab.ask(here / "frames", here / "sound.wav", "which object is heard first?")
    assert program.main(["--ckpt", str(here / "crab.pt"), "--frames", str(here / "frames"), "--audio",
                         str(here / "sound.wav"), "--task", "ask", "--question", "which object is heard first?",
                         "--precision", "fp32", "--kernel", "torch"]) == 0
    printed = capsys.readouterr().out
    assert f"answer: {reply.text}" in printed and reply.sample.seconds == list(range(SECONDS))


def test_tensors_are_answered_as_their_files(here, crab):
    frames = torch.stack([read_image(here / f"frames/{second}.png", 64) for second in range(SECONDS)])
    sound = read_audio(here / "sound.wav")
    from_files = crab.ask(here / "frames", here / "sound.wav", "which object is heard first?")
    from_tensors = crab.ask(frames, sound, "which object is heard first?")
    assert from_files.text == from_tensors.text and torch.equal(from_files.sample.frames, from_tensors.sample.frames)


def test_a_reply_says_what_its_text_means(crab, here):
    """Whatever the model says: the parts are read out of a text as the tasks read it."""
    reply = crab.ask(here / "frames", here / "sound.wav", task="ave")
    for task, text, expected in (
            ("ave", "heard: dog. So <event> dog </event> in <range> 1,3 </range>.",
             dict(spans=[("dog", 1, 3)], parsed=("dog", 1, 3), reasoning="heard: dog. So in .", box=None)),
            ("arig", "So the sound comes from dog, (7,14),(70,84).", dict(box=(7, 14, 70, 84), spans=[])),
            ("avqa", "at 3 dog. <answer> two </answer>", dict(parsed="two", reasoning="at 3 dog."))):
        sample = replace(reply.sample, task=task, fields={"question": "how many?"})
        told = Reply(sample, Answer(sample, text, torch.zeros(0, 64, 64)))
        for name, value in expected.items():
            assert getattr(told, name) == value, (task, name)
    assert TAGGED.sub("", "dog <mask_start><mask_0> <mask_1><mask_end> end").split() == ["dog", "end"]
    assert told.masks.shape == (0, 64, 64) and told.picture().width == 1000


def test_attention_and_routes_are_those_of_the_answer(crab, here):
    weights, texts = crab.attention(1, here / "frames", here / "sound.wav", "which object is heard first?")
    assert weights.shape == (4, len(texts), len(texts)) and texts[0] == "<s>"
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, len(texts)))
    assert weights.triu(1).abs().max() == 0                     # nothing looks ahead
    routes, again = crab.route(here / "frames", here / "sound.wav", "which object is heard first?")
    assert again == texts and len(routes) == 2 * 7              # seven linear layers in each of two blocks
    for name, shares in routes.items():
        assert shares.shape == (len(texts), 3), name
        torch.testing.assert_close(shares.sum(-1), torch.ones(len(texts)))


@pytest.mark.parametrize("words, error, line", [
    (dict(question=""), ConfigError, "task avqa needs question=..."),
    (dict(task="ref_avs", second=1), ConfigError, "task ref_avs needs expression=..."),
    (dict(task="ms3"), ConfigError, "task ms3 needs second=..."),
    (dict(task="avee"), ValueError, "no such task; nearest: ave"),
    (dict(question="<visual> what?"), ConfigError, "the model's own mark"),
    (dict(frames="nowhere", question="what?"), DataError, "nowhere"),
    (dict(frames=torch.zeros(2, 3, 8, 8), question="what?"), DataError, "expected uint8 of shape"),
    (dict(audio=torch.full((16000,), torch.nan), question="what?"), DataError, "expected finite"),
    (dict(audio=torch.zeros(16000, dtype=torch.long), question="what?"), DataError, "found torch.int64"),
])
def test_what_cannot_be_asked_is_one_line(crab, here, words, error, line):
    given = dict(frames=here / "frames", audio=here / "sound.wav") | words
    with pytest.raises(error, match=re.escape(line)) as caught:
        crab.ask(**given)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_model_is_one_line(here):
    with pytest.raises(CheckpointError, match="sound.wav: is damaged or no checkpoint"):
        crab_mini.load(here / "sound.wav")
