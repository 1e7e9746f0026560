"""Text <-> ids: sentencepiece with byte fallback, AV-UIE's tags, mask tokens and placeholders.

What is unusual: tags (`<event>`, `<mask_0>`, ...) are single ids and take the blanks beside them,
so a tag costs one id wherever it stands. `Tokenizer.render` is the one place that turns (seconds,
prompt, answer) into ids; training and generation both go through it. Each placeholder is repeated
as often as it will receive embeddings (paper, section 4).
    words = Tokenizer.train(texts, 1200);  words.decode(words.encode("<event> dog </event>"))
"""

import io
import re
from collections.abc import Iterable
from pathlib import Path

import sentencepiece as spm

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
ANSWER, VISUAL, AUDIO = "<answer_begins>", "<visual>", "<audio>"
MASKS = tuple(f"<mask_{i}>" for i in range(6))
TAGS = ("<event>", "</event>", "<range>", "</range>", "<visual_event>", "</visual_event>",
        "<audio_event>", "</audio_event>", "<answer>", "</answer>", "<mask_start>",
        "<mask_end>") + MASKS
TAG_PATTERN = re.compile("(" + "|".join(map(re.escape, TAGS + (VISUAL, AUDIO, ANSWER))) + ")")


class Tokenizer:
    """A sentencepiece model and the project's tags.

    A model without the tags (LLaMA's own file) gets them appended behind its vocabulary.
    """

    def __init__(self, model: bytes):
        """model: the content of a sentencepiece file; RuntimeError if it is none."""
        self.model = model
        self.pieces = spm.SentencePieceProcessor(model_proto=model)
        # Ids below `known` are the model's own. Tags that it lacks get the ids that follow.
        self.known = size = self.pieces.get_piece_size()
        self.ids = {}
        for tag in (PAD, BOS, EOS, ANSWER, VISUAL, AUDIO) + TAGS:
            known = self.pieces.piece_to_id(tag)
            if self.pieces.id_to_piece(known) != tag:
                known, size = size, size + 1
            self.ids[tag] = known
        self.names = {i: tag for tag, i in self.ids.items()}
        self.size = size
        self.pad, self.bos, self.eos = self.ids[PAD], self.ids[BOS], self.ids[EOS]
        self.visual, self.audio, self.answer = self.ids[VISUAL], self.ids[AUDIO], self.ids[ANSWER]
        self.masks = [self.ids[m] for m in MASKS]

    @classmethod
    def train(cls, texts: Iterable[str], vocab: int) -> "Tokenizer":
        """BPE on texts, with at most `vocab` ids; every word of a small world becomes one piece."""
        model = io.BytesIO()
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(TAG_PATTERN.sub(" ", text) for text in texts),
            model_writer=model, model_type="bpe", vocab_size=vocab, hard_vocab_limit=False,
            byte_fallback=True, split_by_unicode_script=False, split_by_number=False,
            split_digits=False, normalization_rule_name="identity", minloglevel=2,
            pad_id=0, unk_id=1, bos_id=2, eos_id=3, pad_piece=PAD, bos_piece=BOS, eos_piece=EOS,
            user_defined_symbols=[ANSWER, VISUAL, AUDIO, *TAGS, *"(),.:;?"])
        return cls(model.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Reads a sentencepiece `.model` file; ValueError in one line if it is none."""
        try:
            return cls(Path(path).read_bytes())
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{path}: not a readable sentencepiece model "
                             f"({type(error).__name__})") from None

    def encode(self, text: str) -> list[int]:
        """Text -> ids; blanks beside tags do not count."""
        ids = []
        for part in TAG_PATTERN.split(text):
            if part in self.ids:
                ids.append(self.ids[part])
            elif part.strip():
                ids.extend(self.pieces.encode(part.strip()))
        return ids

    def text_of(self, token: int) -> str:
        """One id as text: a tag, or a piece with its leading blank shown as the model holds it."""
        return self.names.get(token) or self.pieces.id_to_piece(token)

    def decode(self, ids: Iterable[int]) -> str:
        """Ids -> text, tags with blanks around them; pad, begin and end are left out."""
        # Pieces between two tags are decoded together, because blanks belong to the pieces. None
        # stands for the end, so that the last pieces are decoded too.
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

    def render(self, seconds: list[int], visual: int, audio: int, prompt: str,
               answer: str | None = None) -> tuple[list[int], list[bool]]:
        """The one way from a sample to ids: each second's number and placeholders, prompt, answer.

        seconds: the number of each frame's second, which is written before its placeholders, so
        that answers can refer to it. visual, audio: placeholders per second. answer None: the
        sequence ends where generation begins. -> ids (L) and the loss mask (L), True on the
        answer's ids.
        """
        ids = [self.bos]
        for second in seconds:
            ids += self.encode(str(second)) + [self.visual] * visual + [self.audio] * audio
        ids += self.encode(prompt) + [self.answer]

        head = len(ids)
        if answer is not None:
            ids += self.encode(answer) + [self.eos]
        return ids, [False] * head + [True] * (len(ids) - head)
