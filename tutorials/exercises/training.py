"""Notebook 11: what is learned from, and how fast."""

from types import SimpleNamespace

import torch

from crab_mini.model.crab import Crab

from ..exercise import exercise


@exercise("11", lives="crab_mini.model.crab:Crab.text_loss", points=3, replaces=False)
def answer_loss(logits, ids, loss_mask):
    """The loss on answers only: logits (B,L,V), ids (B,L), loss_mask (B,L) bool, True on the
    answer's ids.

    The logits at l predict the id at l + 1. -> the mean cross-entropy over ALL answer ids of the
    batch, a scalar.
    """
    raise NotImplementedError


@answer_loss.answered_by
def _(logits, ids, loss_mask):
    crab = SimpleNamespace(llm=SimpleNamespace(head=torch.nn.Identity()))
    total, count = Crab.text_loss(crab, logits, SimpleNamespace(ids=ids, loss_mask=loss_mask))
    return total / count


def batch(trial, *rows: str):
    """`p` prompt, `a` answer, `.` padding."""
    loss_mask = torch.tensor([[c == "a" for c in row] for row in rows])
    return trial.normal(*loss_mask.shape, 5), trial.whole(0, 5, *loss_mask.shape), loss_mask


@answer_loss.requires(
    "logits at l are held against the id at l + 1", "logits[:, :-1] with ids[:, 1:]"
)
def _(trial):
    logits, ids, loss_mask = batch(trial, "paaaa")
    sure = torch.nn.functional.one_hot(ids.roll(-1, 1), 5) * 30.0
    trial.equal(trial.call(sure, ids, loss_mask), torch.tensor(0.0), 1e-3)
    trial.agree(*batch(trial, "pa"))


@answer_loss.requires("the mean over the answer's ids, not the sum", "divide by how many they are")
def _(trial):
    trial.agree(*batch(trial, "paa"))


@answer_loss.requires(
    "the prompt does not count", "loss_mask[:, 1:], the mask of what is predicted"
)
def _(trial):
    trial.agree(*batch(trial, "ppa"))
    trial.agree(*batch(trial, "ppppaa"))


@answer_loss.requires("padding does not count", "neither prompt nor answer")
def _(trial):
    trial.agree(*batch(trial, "pa.."))


@answer_loss.requires(
    "a long answer counts for more than a short one",
    "one mean over all ids, not a mean of rows' means",
)
def _(trial):
    trial.agree(*batch(trial, "paaa", "pa.."))
    trial.agree(*batch(trial, "ppaaaa", "paaaaa", "ppppa."))


@answer_loss.requires("gradients reach the logits of the answer, and only those", "no detach")
def _(trial):
    logits, *rest = batch(trial, "ppaa", "pa..")
    trial.gradients_agree(logits.requires_grad_(), *rest)


@exercise("11", lives="crab_mini.training.optimizer:schedule")
def schedule(step, progress, warmup):
    """The factor of all learning rates before step `step` (from 0) at `progress` (0 to 1) of a
    stage.

    It rises linearly over `warmup` steps, 1/warmup at step 0 and 1 at step warmup - 1; stays; and
    falls linearly to 0 over the last 60 % of the stage. Warm-up and fall multiply.
    """
    raise NotImplementedError


@schedule.requires(
    "the first step is not lost", "(step + 1) / warmup: a factor of 0 would waste it"
)
def _(trial):
    trial.agree(0, 0.0, 4)
    trial.agree(3, 0.0, 4)


@schedule.requires("it never exceeds one", "min(1, ..)")
def _(trial):
    trial.agree(9, 0.1, 4)
    trial.agree(50, 0.2, 4)


@schedule.requires("it falls over the last 60 %, to zero at the end", "(1 - progress) / 0.6")
def _(trial):
    for progress in (1.0, 0.7, 0.4, 0.41):
        trial.agree(100, progress, 4)


@schedule.requires(
    "a stage of no warm-up begins at full rate, one past its end stays at zero",
    "max(warmup, 1), max(0, ..)",
)
def _(trial):
    trial.agree(0, 0.0, 0)
    trial.agree(100, 1.2, 4)


@schedule.requires("warm-up and fall multiply", "a stage may be so short that they overlap")
def _(trial):
    trial.agree(0, 0.7, 4)
