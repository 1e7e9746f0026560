"""A model answers prepared rows: batches of similar length, greedy decoding, masks from the states at mask tokens.

Shuffling gives each row another clip's pictures, sound or both, to see what a task really uses. The other clip belongs
to a row of the same task, so that the prompt still fits, and differs in what is asked for: an exchange of one dog's
bark for another's would show nothing. (Rows of AVCap and Ref-AVS name events only in their texts: theirs is just the
next clip.)
"""

import contextlib

import torch
from tqdm import tqdm

from ..batch import collate
from ..features.rows import Posed, Prepared
from ..model.crab import Crab
from ..tasks.base import TASKS
from ..tokenizer import Tokenizer
from .scoring import Answer

BATCH = 64
LIMIT = 260                 # tokens of an answer at most; the longest of the miniature has some 200
MARGIN = 1.25               # and where a data set's own answers are longer, this many times the longest
LOOK = 1000                 # rows among which a partner that differs is looked for
SHUFFLES = ("audio", "video", "both")


def autocast(device: torch.device, precision: str):
    """A context that computes in the run's precision."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def _names(row: dict) -> set[str]:
    """What an annotation says is seen or heard: an event, events or sounding objects."""
    said = [row.get(key) or () for key in ("event", "a_obj")]
    listed = [name for value in said for name in (value.split(",") if isinstance(value, str) else value)]
    return {name.strip().lower() for name in listed}


def _differ(one: dict, other: dict) -> bool:
    """Whether two annotations of a task disagree: no name in common; of questions, the same one answered otherwise."""
    if "question" in one:
        return one["question"] == other["question"] and one["answer"] != other["answer"]
    return not _names(one) & _names(other)


def partners(rows: list[Prepared]) -> list[Prepared]:
    """For each row of a task one of another clip: the next that differs in what is asked for, or else just the next.

    ValueError where there is no other clip.
    """
    found = []
    for k, row in enumerate(rows):
        others = [o for o in (rows[(k + j) % len(rows)] for j in range(1, min(len(rows), LOOK))) if o.clip != row.clip]
        if not others:
            raise ValueError(f"shuffling {row.task} needs two clips or more, found only {row.clip}")
        found.append(next((o for o in others if _differ(row.row, o.row)), others[0]))
    return found


def limit_of(data: Posed, rows: list[Prepared], tokenizer: Tokenizer) -> int:
    """How many tokens an answer may have: enough for the longest that the data set itself gives."""
    longest = max((len(tokenizer.encode(TASKS[row.task].answer(row.row, data.reasoning))) for row in rows), default=0)
    return max(LIMIT, int(MARGIN * longest))


@torch.no_grad()
def answer(crab: Crab, tokenizer: Tokenizer, data: Posed, task: str, device: torch.device, precision: str = "fp32",
           shuffle: str | None = None, limit: int | None = None) -> list[Answer]:
    """Answers to all rows of a task, in the rows' order. shuffle: None or one of SHUFFLES; limit: tokens an answer."""
    rows = [data.rows[i] for i in data.by_task[task]]
    limit = limit or limit_of(data, rows, tokenizer)
    other = partners(rows) if shuffle else rows
    order = sorted(range(len(rows)), key=lambda k: (len(rows[k].seconds), rows[k].sounds.shape[1],
                                                    len(tokenizer.encode(TASKS[task].prompt(rows[k].row)))))
    answers: dict[int, Answer] = {}
    crab.eval()
    for start in tqdm(range(0, len(order), BATCH), desc=f"answer {task}", unit="batch", leave=False):
        part = order[start:start + BATCH]
        items = [data.item(rows[k], answer=False, sight=other[k] if shuffle in ("video", "both") else None,
                           sound=other[k] if shuffle in ("audio", "both") else None) for k in part]
        batch = collate(items, tokenizer.pad, left=True).to(device)
        features = [None if item.mask_features is None else item.mask_features.to(device) for item in items]
        with autocast(device, precision):
            said = crab.generate(batch, features, limit)
        for k, ids, masks in zip(part, said.ids, said.masks):
            answers[k] = Answer(rows[k], tokenizer.decode(ids), masks.float().cpu())
    return [answers[k] for k in range(len(rows))]
