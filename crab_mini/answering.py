"""A model answers prepared rows: batches of similar length, greedy decoding, masks from the states at mask tokens.

Shuffling gives each row another clip's pictures, sound or both (of the same task, so that the prompt still fits), to
see what a task really uses.
"""

import contextlib

import torch
from tqdm import tqdm

from .batch import collate
from .model import Crab
from .scoring import Answer
from .stages.instruct import Prepared, Rows
from .tokenizer import Tokenizer

BATCH = 64
LIMIT = 260                 # tokens of an answer at most; the longest of the miniature has some 200


def autocast(device: torch.device, precision: str):
    """A context that computes in the run's precision."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def partners(rows: list[Prepared]) -> list[Prepared]:
    """For each row another clip's row of the same task: the next one with another clip, in the data set's order."""
    found = []
    for k, row in enumerate(rows):
        others = (rows[(k + j) % len(rows)] for j in range(1, len(rows)))
        found.append(next((o for o in others if o.task == row.task and o.clip != row.clip), row))
    return found


@torch.no_grad()
def answer(crab: Crab, tokenizer: Tokenizer, data: Rows, task: str, device: torch.device, precision: str = "fp32",
           shuffle: str | None = None) -> list[Answer]:
    """Answers to all rows of a task, in the rows' order. shuffle: None, "audio", "video" or "both"."""
    rows = [data.rows[i] for i in data.by_task[task]]
    other = partners(rows) if shuffle else rows
    items = [data.item(row, answer=False, sight=o if shuffle in ("video", "both") else None,
                       sound=o if shuffle in ("audio", "both") else None) for row, o in zip(rows, other)]
    order = sorted(range(len(rows)), key=lambda k: len(items[k].ids))
    answers: dict[int, Answer] = {}
    crab.eval()
    for start in tqdm(range(0, len(order), BATCH), desc=f"answer {task}", unit="batch", leave=False):
        part = order[start:start + BATCH]
        batch = collate([items[k] for k in part], tokenizer, left=True).to(device)
        features = [None if items[k].mask_features is None else items[k].mask_features.to(device) for k in part]
        with autocast(device, precision):
            said = crab.generate(batch, features, LIMIT)
        for k, ids, masks in zip(part, said.ids, said.masks):
            answers[k] = Answer(rows[k], tokenizer.decode(ids), masks.float().cpu())
    return [answers[k] for k in range(len(rows))]
