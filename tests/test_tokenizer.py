"""Text <-> ids: round trips, bytes for what was never seen, tags as single ids, the one way from a sample to ids."""

import random
import re

import pytest
import sentencepiece

from crab_mini.tasks.base import MASK_GROUP, MASK_TOKENS, TASKS
from crab_mini.tokenizer import AUDIO, MASKS, TAGS, VISUAL, Tokenizer

from .scenes import rows

SCENES = 60
TEXTS = [text for task in TASKS for _, row in rows(task, SCENES)
         for text in (TASKS[task].prompt(row), TASKS[task].answer(row))]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 640)


@pytest.fixture(scope="module")
def without_tags(tmp_path_factory) -> Tokenizer:
    """A sentencepiece model that knows nothing of the project, as LLaMA's."""
    path = tmp_path_factory.mktemp("model") / "plain"
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXTS), model_prefix=str(path), vocab_size=400,
                                             model_type="bpe", byte_fallback=True, minloglevel=2)
    return Tokenizer.load(path.with_suffix(".model"))


def test_words_come_back(tokenizer):
    for text in ("which event is both seen and heard?", "0 dog 1 nothing, (35,140),(70,224).", "dog", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    for text in random.Random(0).sample(TEXTS, 50):             # tags are set off by blanks, nothing else changes
        assert tokenizer.decode(tokenizer.encode(text)) == " ".join(re.sub("(<[^>]*>)", r" \1 ", text).split())
    assert tokenizer.decode([tokenizer.pad, tokenizer.bos, *tokenizer.encode("dog bell"), tokenizer.eos]) == "dog bell"


@pytest.mark.parametrize("task", TASKS)
def test_an_answer_means_the_same_after_the_round_trip(tokenizer, without_tags, task):
    for known in (tokenizer, without_tags):
        for _, row in rows(task, SCENES)[:40]:
            for reasoning in (True, False):
                answer = TASKS[task].answer(row, reasoning)
                assert TASKS[task].parse(known.decode(known.encode(answer))) == TASKS[task].parse(answer) is not None


def test_what_was_never_seen_becomes_bytes_and_comes_back(tokenizer):
    for text in ("zażółć gęślą jaźń", "犬が吠える", "a🦀b", "tab\there", "QWERTY #@~"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and tokenizer.pieces.unk_id() not in ids
    rng = random.Random(2)
    text = "".join(chr(rng.choice((rng.randrange(33, 127), rng.randrange(0xA1, 0xD7FF)))) for _ in range(300))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_tag_is_one_id_and_swallows_the_blanks_beside_it(tokenizer, without_tags):
    for known in (tokenizer, without_tags):
        for tag in TAGS:
            assert known.encode(tag) == [known.ids[tag]]
            assert known.encode(f"a{tag}b") == known.encode(f"a  {tag} b")
        assert len(known.encode(MASK_GROUP)) == 8
        assert known.masks == [known.ids[m] for m in MASKS] and len(set(known.ids.values())) == len(known.ids)


def test_a_model_without_the_tags_gets_them_behind_its_vocabulary(tokenizer, without_tags):
    assert without_tags.size == 400 + len(TAGS) + 4             # pad, begin of answer, two placeholders; <s> is there
    assert sorted(i for i in without_tags.ids.values() if i >= 400) == list(range(400, without_tags.size))
    assert tokenizer.size == tokenizer.pieces.get_piece_size() <= 640


def test_a_mask_group_of_the_tasks_is_the_tokenizer_s(tokenizer):
    """Neither file may import the other, so the tokens' names stand in both."""
    assert MASK_GROUP == f"<mask_start>{''.join(MASKS)}<mask_end>" and MASK_TOKENS == list(MASKS)
    assert tokenizer.encode(MASK_GROUP)[1:-1] == tokenizer.masks


def test_words_of_the_world_are_single_pieces(tokenizer):
    for word in ("bell", "emergency-car", "nothing", "top-left", "10"):
        assert len(tokenizer.encode(word)) == 1, word


def test_rendered_placeholders_and_trained_ids(tokenizer):
    ids, loss_mask = tokenizer.render([0, 3, 7], 4, 2, "where is the dog?", "at 3. <answer> top-left </answer>")
    begin = ids.index(tokenizer.answer)
    assert ids.count(tokenizer.visual) == 12 and ids.count(tokenizer.audio) == 6
    assert ids[0] == tokenizer.bos and ids[-1] == tokenizer.eos
    assert loss_mask == [k > begin for k in range(len(ids))]
    assert tokenizer.decode(ids[begin + 1:]) == "at 3. <answer> top-left </answer>"
    prefix = " ".join(f"{second} {' '.join([VISUAL] * 4 + [AUDIO] * 2)}" for second in (0, 3, 7))
    assert tokenizer.decode(ids[1:begin]) == f"{prefix} where is the dog?"
    asked, asked_mask = tokenizer.render([0, 3, 7], 4, 2, "where is the dog?")
    assert asked == ids[:begin + 1] and not any(asked_mask)   # generation begins where training's answer does


def test_the_same_model_after_saving(tokenizer, tmp_path):
    (tmp_path / "t.model").write_bytes(tokenizer.model)
    again = Tokenizer.load(tmp_path / "t.model")
    assert again.ids == tokenizer.ids and again.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


def test_a_file_that_is_no_model_is_one_line(tmp_path):
    (tmp_path / "bad.model").write_bytes(b"no model at all")
    for name in ("bad.model", "missing.model"):
        with pytest.raises(ValueError, match=f"{name}: not a readable sentencepiece model"):
            Tokenizer.load(tmp_path / name)
