"""A trained model in five lines of Python.

    import crab_mini
    crab = crab_mini.load("runs/tiny/crab.pt")
    answer = crab.ask("frames", "sound.wav", "which object is heard first?")
    print(answer.reasoning, answer.text)
    crab.ask("frames", "sound.wav", task="ms3", second=4).picture().save("answer.png")

`ask` takes what `eval.py --frames --audio` takes, or tensors. `attention` and `route` show what
happens inside for the same question. Everything else is crab.model, an ordinary nn.Module.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from . import bundle
from .av_uie.samples import Sample
from .batch import Batch, collate
from .config import ConfigError
from .evaluation.generate import LIMIT, answer, autocast
from .evaluation.own_files import Request, encoded, sample_of
from .evaluation.pictures import picture_of
from .features.encoders import Features
from .features.rows import Samples
from .tasks.base import TASKS, parse_tasks
from .tasks.drawing import Box, Drawing, Event
from .tasks.score import Answer
from .tokenizer import Tokenizer

# What is no reasoning: <event> dog </event> and the like, and mask tokens.
TAGGED = re.compile(r"<(\w+)>.*?</\1>|(?:<mask_\w+>\s*)+", re.S)


@dataclass
class Reply:
    """What a model answered to one question about one clip."""
    sample: Sample              # the decoded clip and the question
    answer: Answer              # the text, what it means, and mask logits
    frame_size: tuple[int, int] | None = None   # (width, height) of the frame in question, if known

    @property
    def text(self) -> str:
        """The whole answer: reasoning, then tags."""
        return self.answer.text

    @property
    def parsed(self):
        """The answer as a plain value, as the task's `parse` gives it.

        None where the answer cannot be read.
        """
        return self.answer.parsed

    @property
    def reasoning(self) -> str:
        """The words of the answer outside its tags."""
        return " ".join(TAGGED.sub(" ", self.text).split())

    @property
    def drawing(self) -> Drawing:
        """What can be drawn of the answer: masks, class map, box, events."""
        return TASKS[self.sample.task].picture(self.answer)

    @property
    def masks(self) -> Tensor:
        """(G,H,W) bool: one mask for each group of mask tokens; G may be 0.

        H and W are the side of the model's frames.
        """
        return self.answer.masks > 0

    @property
    def box(self) -> Box | None:
        """x0, y0, x1, y1 in pixels of a 224x224 frame; None where the task has no box."""
        return self.drawing.box

    @property
    def spans(self) -> list[Event]:
        """(name, first second, the second after the last) of every event in the answer."""
        return self.drawing.events

    def picture(self) -> Image.Image:
        """Frames, spectrogram, question and answer on one page."""
        return picture_of(self.sample, self.answer)


class Predictor:
    """A trained model that answers questions about clips, one at a time."""

    def __init__(self, tokenizer: Tokenizer, facts: dict, features: Features):
        """facts: what train.py kept with the model (tasks, classes, ...). features: of the model."""
        self.model, self.tokenizer, self.facts = features.crab.eval(), tokenizer, facts
        self.features = features

    def ask(self, frames: str | Path | Tensor, audio: str | Path | Tensor | None = None,
            question: str = "", *, task: str = "", second: int | None = None,
            expression: str = "") -> Reply:
        """One question about one clip.

        frames: a folder with a picture a second, a picture, a video, or (T,3,H,W) uint8.
        audio: a sound file or (S,) at 16 kHz; None: the video's own sound.
        question: of MUSIC-AVQA's kind; then `task` need not be given. task: one of TASKS.
        second: of ms3, avss, ref_avs, and the frame of arig and s4. expression: of ref_avs.
        Raises ConfigError or DataError, one line, for what cannot be asked or read.
        """
        request = self.request(frames, audio, question, task, second, expression)
        return self.reply(request)[0]

    def attention(self, layer: int, *question, **named) -> tuple[Tensor, list[str]]:
        """Attention weights of one LLM layer over a question and its answer, and the tokens' texts.

        question, named: as in `ask`. -> (n,L,L), of which row l says where the state at l looks,
        and L texts. The answer is generated first, then read in one forward pass.
        """
        batch, texts = self.answered(self.request(*question, **named))
        with autocast(self.features.device, self.features.precision):
            return self.model.attention(batch, layer)[0].float().cpu(), texts

    def route(self, *question, **named) -> tuple[dict[str, Tensor], list[str]]:
        """Router weights of every LoRA layer over a question and its answer, and the tokens' texts.

        question, named: as in `ask`. -> {layer's name: (L,E)}, of which each row sums to one, and L
        texts.
        """
        batch, texts = self.answered(self.request(*question, **named))
        with autocast(self.features.device, self.features.precision):
            routes = self.model.route(batch)
        return {name: weights[0].float().cpu() for name, weights in routes.items()}, texts

    # ---- steps -----------------------------------------------------------------------------------

    def request(self, frames, audio=None, question: str = "", task: str = "",
                second: int | None = None, expression: str = "") -> Request:
        """The arguments of `ask`, checked for what the task needs."""
        name = parse_tasks(task or "avqa")[0]
        given = {"question": question, "expression": expression, "second": second}
        for option in TASKS[name].own_options:
            if given[option] in ("", None):
                raise ConfigError(f"task {name} needs {option}=...")
        return Request(name, opened(frames), opened(audio), second, question, expression)

    def reply(self, request: Request) -> tuple[Reply, Samples]:
        """The answer to a request, and its sample with features in place of its media."""
        classes = tuple(self.facts.get("classes", ()))
        sample, frame_size = sample_of(request, self.model.cfg.vision.image, classes)
        samples = encoded(sample, self.features, self.tokenizer)
        found, = answer(self.model, self.tokenizer, samples, sample.task, self.features.device,
                        self.features.precision, limit=2 * LIMIT)
        return Reply(sample, found, frame_size), samples

    def answered(self, request: Request) -> tuple[Batch, list[str]]:
        """A question with the model's own answer behind it: a batch of one, its L tokens' texts."""
        reply, samples = self.reply(request)
        sequence = samples.sequence(samples.samples[0], answer=False)
        # An untrained model may answer with placeholders. In a prompt they would need embeddings.
        marks = (self.tokenizer.visual, self.tokenizer.audio)
        answer_ids = [i for i in self.tokenizer.encode(reply.text) if i not in marks]
        sequence.ids = sequence.ids + answer_ids
        sequence.loss_mask = sequence.loss_mask + [True] * len(answer_ids)
        sequence.masks = None           # what is looked into are states; masks are decoded by `ask`
        batch = collate([sequence], self.tokenizer.pad, step=1)
        return batch.to(self.features.device), [self.tokenizer.text_of(i) for i in sequence.ids]


def opened(source: str | Path | Tensor | None) -> Path | Tensor | None:
    """A file's name as a Path; a tensor, or nothing, as it is."""
    return Path(source) if isinstance(source, (str, Path)) else source


def load(path: str | Path, device: str = "cpu", precision: str = "fp32",
         kernel: str = "") -> Predictor:
    """The model that train.py left in crab.pt, ready to be asked.

    device: "cpu" or "cuda". precision: "fp32" or "bf16". kernel: of the LoRA, one of
    fused_lora.KERNELS; "": as the environment variable CRAB_KERNEL says. CheckpointError names what
    is wrong with a file.
    """
    model, tokenizer, facts = bundle.load(Path(path), kernel)
    features = Features(model.to(device), torch.device(device), precision)
    return Predictor(tokenizer, facts, features)
