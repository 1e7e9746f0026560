"""Text <-> ids: sentencepiece with byte fallback, the tags of AV-UIE, mask tokens and the placeholders of the interfaces.

What is unusual: tags (`<event>`, `<mask_0>`, ...) are single ids and swallow the blanks beside them, so a tag costs
one id wherever it stands. `render` is the one place that turns (clip length, prompt, answer) into ids; training and
generation both go through it. Each placeholder is repeated as often as it will receive embeddings (paper, section 4).
"""

import io
import re
from pathlib import Path

import sentencepiece as spm

PAD, BOS, EOS, ANSWER, VISUAL, AUDIO = "<pad>", "<s>", "</s>", "<answer_begins>", "<visual>", "<audio>"
MASKS = tuple(f"<mask_{i}>" for i in range(6))
TAGS = ("<event>", "</event>", "<range>", "</range>", "<visual_event>", "</visual_event>", "<audio_event>",
        "</audio_event>", "<answer>", "</answer>", "<mask_start>", "<mask_end>") + MASKS
_SPLIT = re.compile("(" + "|".join(map(re.escape, TAGS + (VISUAL, AUDIO, ANSWER))) + ")")


class Tokenizer:
    """A sentencepiece model and the project's tags.

    A model without the tags (LLaMA's own file) gets them appended behind its vocabulary.
    """

    def __init__(self, model: bytes):
        self.model = model
        self.pieces = spm.SentencePieceProcessor(model_proto=model)
        self.ids = {}
        self.known = size = self.pieces.get_piece_size()       # ids of the model itself; the added ones follow
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
    def train(cls, texts, vocab: int) -> "Tokenizer":
        """BPE on an iterable of strings; every word of a small world becomes one piece."""
        model = io.BytesIO()
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(_SPLIT.sub(" ", text) for text in texts), model_writer=model, model_type="bpe",
            vocab_size=vocab, hard_vocab_limit=False, byte_fallback=True, split_by_unicode_script=False,
            split_by_number=False, split_digits=False, normalization_rule_name="identity", minloglevel=2,
            pad_id=0, unk_id=1, bos_id=2, eos_id=3, pad_piece=PAD, bos_piece=BOS, eos_piece=EOS,
            user_defined_symbols=[ANSWER, VISUAL, AUDIO, *TAGS, *"(),.:;?"])
        return cls(model.getvalue())

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

    def render(self, seconds: list[int], visual: int, audio: int, prompt: str,
               answer: str | None = None) -> tuple[list[int], list[bool]]:
        """The one way from a sample to ids: each second's word and placeholders, the prompt, the answer.

        seconds: which second each frame is (they are spoken, so that answers can point at them); visual, audio:
        placeholders per second; answer None: the sequence ends where generation begins. -> ids (L) and the loss mask
        (L), True on the answer's ids.
        """
        ids = [self.bos]
        for second in seconds:
            ids += self.encode(str(second)) + [self.visual] * visual + [self.audio] * audio
        ids += self.encode(prompt) + [self.answer]
        head = len(ids)
        if answer is not None:
            ids += self.encode(answer) + [self.eos]
        return ids, [False] * head + [True] * (len(ids) - head)
