"""Notebook 10: from a word to pixels."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import torch

from crab_mini.model.crab import Crab

from ..exercise import exercise

FIRST, LAST = 50, 52  # three mask ids in these exercises: <mask_0> .. <mask_2>


@exercise("10", lives="crab_mini.model.crab:Crab.mask_states", points=3)
def mask_states(hidden, ids, loss_mask, first, last):
    """The states that PREDICT mask tokens: hidden (B,L,D), ids (B,L), loss_mask (B,L) bool, True on
    the answer.

    Mask tokens have the ids first .. last. The state one place before each of them in the answers,
    in groups of last - first + 1: -> (G,last-first+1,D), rows in order. Mask tokens outside the
    answer do not count.
    """
    raise NotImplementedError


@mask_states.answered_by
def _(hidden, ids, loss_mask, first, last):
    crab = SimpleNamespace(ids=SimpleNamespace(masks=(first, last)))
    crab.is_mask, crab.grouped = partial(Crab.is_mask, crab), partial(Crab.grouped, crab)
    return Crab.mask_states(crab, hidden, ids, loss_mask)


@mask_states.placed_by
def _(answer):
    return lambda self, hidden, ids, loss_mask: answer(hidden, ids, loss_mask, *self.ids.masks)


def posed(trial, *rows: str):
    """`p` a prompt's word, `w` an answer's word, `m` the answer's mask group, `q` a mask group in
    the prompt."""
    group = list(range(FIRST, LAST + 1))
    ids, answers = [], []
    for row in rows:
        ids.append([i for c in row for i in (group if c in "mq" else [int(trial.whole(1, 40, 1))])])
        answers.append([c in "wm" for c in row for _ in (group if c in "mq" else [0])])
    length = max(map(len, ids))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in ids])
    loss_mask = torch.tensor([row + [False] * (length - len(row)) for row in answers])
    return trial.normal(*ids.shape, 2), ids, loss_mask, FIRST, LAST


@mask_states.requires("groups of last - first + 1 states", "(G, tokens, D)")
def _(trial):
    found = trial.call(*posed(trial, "pwm"))
    trial.expect(
        getattr(found, "shape", None) == (1, 3, 2),
        "shape (1, 3, 2)",
        str(tuple(getattr(found, "shape", ()))),
    )


@mask_states.requires(
    "the state BEFORE each mask token is read",
    "it predicts the token: hidden[:, :-1] where ids[:, 1:]",
)
def _(trial):
    trial.agree(*posed(trial, "pwm"))


@mask_states.requires("mask tokens of the prompt do not count", "& loss_mask")
def _(trial):
    trial.agree(*posed(trial, "pqwmw"))


@mask_states.requires("several groups and rows, in their order", "row by row, from the left")
def _(trial):
    trial.agree(*posed(trial, "pmwm"))
    trial.agree(*posed(trial, "pwm", "ppwwm"))
    trial.agree(*posed(trial, "pmwm", "ppw", "pppm"))


@mask_states.requires("gradients reach the states", "no detach")
def _(trial):
    hidden, *rest = posed(trial, "pwm", "pm")
    trial.gradients_agree(hidden.requires_grad_(), *rest)


@exercise("10", lives="crab_mini.model.mask_decoder:dice_loss", points=2)
def dice_loss(logits, target):
    """1 - (2 |p t| + 1) / (|p| + |t| + 1) of each mask: logits (G,H,W), target (G,H,W) of 0 and 1
    -> (G,).

    p = sigmoid(logits); |.| sums over the pixels of one mask.
    """
    raise NotImplementedError


@dice_loss.placed_by
def _(answer):
    return lambda logits, target, smooth=1.0, scale=1.0: answer(logits, target)


def pixels(*rows) -> torch.Tensor:
    """Nested lists as (G,H,W)."""
    return torch.tensor([[row] for row in rows], dtype=torch.float32)


@dice_loss.requires("one loss for each mask", "sum over the last two axes, not over the batch")
def _(trial):
    logits, target = pixels([8.0, -8.0], [-8.0, -8.0]), pixels([1, 0], [0, 1])
    alone = torch.cat([trial.call(logits[k : k + 1], target[k : k + 1]) for k in range(2)])
    trial.equal(trial.call(logits, target), alone)


@dice_loss.requires(
    "logits become probabilities",
    "p = sigmoid(logits): sure is 1 and not more; 0.5 is less sure than 3",
)
def _(trial):
    trial.equal(trial.call(pixels([20.0]), pixels([1])), trial.call(pixels([40.0]), pixels([1])))
    doubt, sure = (float(trial.call(pixels([v]), pixels([1]))) for v in (0.5, 3.0))
    trial.expect(
        doubt > sure + 1e-3, "a higher loss at logit 0.5 than at 3", f"{doubt:.4f} and {sure:.4f}"
    )


@dice_loss.requires(
    "a perfect mask costs nothing", "2 |p t|, as p and t both hold it; the same 1 above and below"
)
def _(trial):
    trial.equal(trial.call(pixels([40.0, -40.0]), pixels([1, 0])), torch.zeros(1))


@dice_loss.requires(
    "the 1 stands above and below: an empty target's loss is smooth", "(2 pt + 1) / (p + t + 1)"
)
def _(trial):
    trial.equal(trial.call(pixels([-12.0]), pixels([0])), torch.zeros(1))
    trial.equal(trial.call(pixels([-12.0, -12.0]), pixels([0, 0])), torch.zeros(1))


@dice_loss.requires("p and t are summed as they are", "not squared")
def _(trial):
    trial.agree(trial.normal(3, 4, 5), (trial.normal(3, 4, 5) > 0).float())


@dice_loss.requires("gradients reach the logits", "no threshold, no detach")
def _(trial):
    trial.gradients_agree(
        trial.normal(2, 3, 3).requires_grad_(), (trial.normal(2, 3, 3) > 0).float()
    )


@exercise("10", lives="crab_mini.model.mask_decoder:bce_loss")
def bce_loss(logits, target):
    """Binary cross-entropy of each mask, the mean over its pixels: logits (G,H,W), target (G,H,W)
    -> (G,)."""
    raise NotImplementedError


@bce_loss.requires("one loss for each mask", "mean over the pixels, not over the batch")
def _(trial):
    logits, target = pixels([1.0], [-2.0]), pixels([1], [1])
    alone = torch.cat([trial.call(logits[k : k + 1], target[k : k + 1]) for k in range(2)])
    trial.equal(trial.call(logits, target), alone)


@bce_loss.requires("the mean over the pixels, not the sum", "a larger picture is not a larger loss")
def _(trial):
    trial.equal(
        trial.call(pixels([0.5, 0.5]), pixels([1, 1])), trial.call(pixels([0.5]), pixels([1]))
    )


@bce_loss.requires(
    "minus the logarithm of the right answer's probability", "-log sigmoid(x) where the target is 1"
)
def _(trial):
    trial.agree(pixels([0.0]), pixels([1]))
    trial.agree(pixels([2.0]), pixels([0]))


@bce_loss.requires(
    "sure and wrong is finite", "log(sigmoid(-100)) is -inf; use the logits themselves"
)
def _(trial):
    trial.agree(pixels([-200.0, 3.0]), pixels([1, 0]))


@bce_loss.requires(
    "gradients of sure and wrong pixels do not vanish", "clamping a probability cuts its gradient"
)
def _(trial):
    trial.gradients_agree(pixels([-200.0, 0.5]).requires_grad_(), pixels([1, 0]))


@exercise("10", lives="crab_mini.metrics.masks:mask_iou")
def mask_iou(pred, target):
    """Intersection over union of each mask: pred logits (G,H,W), target (G,H,W) of 0 and 1 -> numpy
    array (G,).

    A pixel is foreground where its logit is above 0. Nothing predicted where nothing is: 1.
    """
    raise NotImplementedError


@mask_iou.requires("foreground is a logit above 0", "sigmoid(0) = 0.5")
def _(trial):
    trial.equal(
        trial.call(pixels([0.2, -1.0]), pixels([1, 1])),
        np.asarray(trial.call(pixels([5.0, -5.0]), pixels([1, 1]))),
    )


@mask_iou.requires("one number for each mask", "not the batch's pixels in one")
def _(trial):
    pred, target = pixels([1.0, 1.0], [1.0, -1.0]), pixels([1, 0], [1, 0])
    alone = np.concatenate(
        [np.asarray(trial.call(pred[k : k + 1], target[k : k + 1])) for k in range(2)]
    )
    trial.equal(trial.call(pred, target), alone)


@mask_iou.requires("over the union, not over the target or the sum", "(p & t) / (p | t)")
def _(trial):
    trial.agree(pixels([1.0, 1.0]), pixels([1, 0]))
    trial.agree(pixels([1.0, 1.0, -1.0]), pixels([0, 1, 1]))
    trial.agree(trial.normal(4, 3, 5), (trial.normal(4, 3, 5) > 0).float())


@mask_iou.requires(
    "nothing predicted where nothing is scores 1, something scores 0", "look at an empty union"
)
def _(trial):
    trial.agree(pixels([-1.0, -1.0]), pixels([0, 0]))
    trial.agree(pixels([1.0, -1.0]), pixels([0, 0]))
