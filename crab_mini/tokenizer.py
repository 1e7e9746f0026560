"""Text <-> ids: sentencepiece with byte fallback, the tags of AV-UIE, mask tokens and the placeholders of the interfaces.

What is unusual: tags (`<event>`, `<mask_0>`, ...) are single ids and swallow the blanks beside them, so a tag costs
one id wherever it stands. `render` is the one place that turns (clip length, prompt, answer) into ids; training and
generation both go through it. Each placeholder is repeated as often as it will receive embeddings (paper, section 4).

The tags of answers, and all words that an LLM's pre-training never says, stand last: ids from `known` on are rows that
are added to its embedding and head for instruction tuning (llm.py). Mask tokens are not among them.
"""

import io
import re
from dataclasses import dataclass
from pathlib import Path

import sentencepiece as spm

PAD, BOS, EOS, ANSWER, VISUAL, AUDIO = "<pad>", "<s>", "</s>", "<answer_begins>", "<visual>", "<audio>"
MASKS = tuple(f"<mask_{i}>" for i in range(6))
ANSWER_TAGS = ("<event>", "</event>", "<range>", "</range>", "<visual_event>", "</visual_event>", "<audio_event>",
               "</audio_event>", "<answer>", "</answer>")
TAGS = ANSWER_TAGS + ("<mask_start>", "<mask_end>") + MASKS
_SPLIT = re.compile("(" + "|".join(map(re.escape, TAGS + (VISUAL, AUDIO, ANSWER))) + ")")


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A protobuf varint at a place -> (value, place behind it)."""
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at


def _with_last(model: bytes, names) -> bytes:
    """A sentencepiece model with the pieces of these names moved to the end, in this order; ids follow the order.

    A ModelProto is a list of fields (key, length, content); field 1, repeated, is a piece, whose field 1 is its name.
    """
    pieces, rest, at = {}, [], 0
    while at < len(model):
        key, inner = _number(model, at)
        length, inner = _number(model, inner)
        field, at = model[at:inner + length], inner + length
        if key == 0x0A:
            size, name = _number(model, inner + 1)
            pieces[model[name:name + size].decode()] = field
        else:
            rest.append(field)
    last = [pieces.pop(name) for name in names]
    return b"".join([*pieces.values(), *last, *rest])


@dataclass(frozen=True)
class Rendered:
    """One sequence: ids and, for each id, whether it belongs to the answer (is trained on)."""
    ids: list[int]
    trained: list[bool]


class Tokenizer:
    """A sentencepiece model and the project's tags.

    A model without the tags (LLaMA's own file) gets them appended behind its vocabulary. known: ids below it are the
    LLM's own, the others are added to it; size: all.
    """

    def __init__(self, model: bytes):
        self.model = model
        self.pieces = spm.SentencePieceProcessor(model_proto=model)
        self.ids = {}
        size = pieces = self.pieces.get_piece_size()
        for tag in (PAD, BOS, EOS, ANSWER, VISUAL, AUDIO) + TAGS:
            known = self.pieces.piece_to_id(tag)
            if self.pieces.id_to_piece(known) != tag:
                known, size = size, size + 1
            self.ids[tag] = known
        self.names = {i: tag for tag, i in self.ids.items()}
        self.size, self.known = size, min(pieces, self.ids[ANSWER_TAGS[0]])
        self.pad, self.bos, self.eos = self.ids[PAD], self.ids[BOS], self.ids[EOS]
        self.visual, self.audio, self.answer = self.ids[VISUAL], self.ids[AUDIO], self.ids[ANSWER]
        self.masks = [self.ids[m] for m in MASKS]

    @classmethod
    def train(cls, texts, vocab: int, told=(), asked=()) -> "Tokenizer":
        """BPE on all the strings given; every word of a small world becomes one piece.

        told: what the LLM learns to say before instruction tuning; asked: prompts and answers of the tasks. Pieces of
        `asked` that are not in `told` stand last, behind the tags.
        """
        texts, told, asked = map(list, (texts, told, asked))
        model = io.BytesIO()
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(_SPLIT.sub(" ", text) for text in texts + told + asked), model_writer=model,
            model_type="bpe", vocab_size=vocab, hard_vocab_limit=False, character_coverage=1.0, byte_fallback=True,
            split_by_unicode_script=False, split_by_number=False, split_digits=False, minloglevel=2,
            normalization_rule_name="identity", pad_id=0, unk_id=1, bos_id=2, eos_id=3, pad_piece=PAD, bos_piece=BOS,
            eos_piece=EOS, user_defined_symbols=[ANSWER, VISUAL, AUDIO, *TAGS, *"(),.:;?"])
        first = cls(_with_last(model.getvalue(), ANSWER_TAGS))
        said, known = ({i for text in some for i in first.encode(text)} for some in (asked, told))
        late = [first.pieces.id_to_piece(i) for i in sorted(said - known) if i < first.known]
        return cls(_with_last(first.model, ANSWER_TAGS + tuple(late)))

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Reads a sentencepiece `.model` file; one line of error if it is none."""
        try:
            return cls(Path(path).read_bytes())
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{path}: not a readable sentencepiece model ({type(error).__name__})") from None

    def encode(self, text: str) -> list[int]:
        """Text -> ids; blanks beside tags do not count."""
        ids = []
        for part in _SPLIT.split(text):
            if part in self.ids:
                ids.append(self.ids[part])
            elif part.strip():
                ids.extend(self.pieces.encode(part.strip()))
        return ids

    def decode(self, ids) -> str:
        """Ids -> text, tags set off by blanks; pad, begin and end are left out."""
        parts, run = [], []
        for i in [*map(int, ids), None]:
            if i in self.names or i is None:
                if run:
                    parts.append(self.pieces.decode(run))
                    run = []
                if i is not None and i not in (self.pad, self.bos, self.eos):
                    parts.append(self.names[i])
            else:
                run.append(i)
        return " ".join(p for p in parts if p)

    def render(self, seconds: list[int], visual: int, audio: int, prompt: str, answer: str | None = None) -> Rendered:
        """The one way from a sample to ids: each second's word and placeholders, the prompt, the answer.

        seconds: which second each frame is (they are spoken, so that answers can point at them); visual, audio:
        placeholders per second; answer None: the sequence ends where generation begins.
        """
        ids = [self.bos]
        for second in seconds:
            ids += self.encode(str(second)) + [self.visual] * visual + [self.audio] * audio
        ids += self.encode(prompt) + [self.answer]
        head = len(ids)
        if answer is not None:
            ids += self.encode(answer) + [self.eos]
        return Rendered(ids, [False] * head + [True] * (len(ids) - head))
