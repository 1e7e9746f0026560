"""A model answers samples: batches of similar length, greedy decoding, a mask for each mask group.

Shuffling gives each sample another clip's frames, sound or both, to see what a task really uses.
The other clip belongs to a sample of the same task, so that the prompt still fits, and differs in
what is asked for: an exchange of one dog's bark for another's would show nothing. AVCap and Ref-AVS
name events only in their texts; there the other clip is the next one.
"""

import contextlib

import torch
from tqdm import tqdm

from ..av_uie.samples import Sample
from ..batch import collate
from ..features.rows import Samples
from ..model.crab import Crab
from ..tasks.base import TASKS
from ..tasks.score import Answer
from ..tokenizer import Tokenizer

BATCH = 64
LIMIT = 260                 # tokens of an answer at most; the longest of the miniature has some 200
MARGIN = 1.25               # where a data set's own answers are longer, this many times the longest
NEXT = 1000                 # samples after a sample among which its partner is looked for
SHUFFLES = ("audio", "video", "both")


def autocast(device: torch.device, precision: str):
    """A context that computes in the run's precision."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def partners(samples: list[Sample]) -> list[Sample]:
    """For each sample of a task one of another clip, whose frames or sound it gets when shuffled.

    It is the next that differs in what is asked for (`Task.differ`), or else just the next.
    ValueError where there is no other clip.
    """
    found = []
    for k, sample in enumerate(samples):
        following = [samples[(k + j) % len(samples)] for j in range(1, min(len(samples), NEXT))]
        others = [other for other in following if other.clip != sample.clip]
        if not others:
            raise ValueError(f"shuffling {sample.task} needs two clips or more, found only "
                             f"{sample.clip}")
        differ = TASKS[sample.task].differ
        found.append(next((o for o in others if differ(sample.fields, o.fields)), others[0]))
    return found


def limit_of(data: Samples, samples: list[Sample], tokenizer: Tokenizer) -> int:
    """How many tokens an answer may have: enough for the longest that the data set itself gives."""
    texts = [TASKS[sample.task].answer(sample.fields, data.reasoning) for sample in samples]
    longest = max((len(tokenizer.encode(text)) for text in texts), default=0)
    return max(LIMIT, int(MARGIN * longest))


def by_length(samples: list[Sample], tokenizer: Tokenizer) -> list[int]:
    """Places of a task's samples, those with sequences of similar length beside each other."""
    def length(place: int) -> tuple[int, int, int]:
        sample = samples[place]
        prompt = tokenizer.encode(TASKS[sample.task].prompt(sample.fields))
        return len(sample.seconds), sample.sounds.shape[1], len(prompt)
    return sorted(range(len(samples)), key=length)


@torch.no_grad()
def answer(crab: Crab, tokenizer: Tokenizer, data: Samples, task: str, device: torch.device,
           precision: str = "fp32", shuffle: str | None = None,
           limit: int | None = None) -> list[Answer]:
    """Answers to all samples of a task, in the samples' order.

    shuffle: None or one of SHUFFLES. limit: tokens of an answer at most (None: `limit_of`).
    """
    samples = data.of(task)
    limit = limit or limit_of(data, samples, tokenizer)
    others = partners(samples) if shuffle else samples
    order = by_length(samples, tokenizer)
    answers: dict[int, Answer] = {}
    crab.eval()
    starts = range(0, len(order), BATCH)
    for start in tqdm(starts, desc=f"answer {task}", unit="batch", leave=False):
        part, sequences = order[start:start + BATCH], []
        for k in part:
            frames_of = others[k] if shuffle in ("video", "both") else None
            sounds_of = others[k] if shuffle in ("audio", "both") else None
            sequences.append(data.sequence(samples[k], False, frames_of, sounds_of))
        batch = collate(sequences, tokenizer.pad, left=True).to(device)

        # The features that mask tokens refer to; None where the task has no masks.
        features = [None if s.mask_features is None else s.mask_features.to(device)
                    for s in sequences]
        with autocast(device, precision):
            generated = crab.generate(batch, features, limit)
        for k, ids, masks in zip(part, generated.ids, generated.masks):
            answers[k] = Answer(samples[k], tokenizer.decode(ids), masks.float().cpu())
    return [answers[k] for k in range(len(samples))]
