"""Notebook 06: what an anchored query starts from, and what it looks at."""

import torch
import torch.nn as nn

from crab_mini.config import QFormerConfig
from crab_mini.model.qformer import QFormer, cells

from ..exercise import exercise

MODULE = "crab_mini.model.qformer"


@exercise("06", lives=f"{MODULE}:cells")
def cells_of(h, w, grid, queries):
    """Which places of an h x w map belong to each query's cell: (queries, h*w) bool.

    grid (rows, columns) divides the map into cells of equal size; place (y, x) lies in row y * rows
    // h and column x * columns // w of the grid. Places and cells are counted row by row; with more
    queries than cells they repeat.
    """
    raise NotImplementedError


cells_of.answered_by(cells)


@cells_of.requires("one cell holds everything", "(queries, h*w), bool")
def _(trial):
    trial.agree(1, 2, (1, 1), 1)


@cells_of.requires(
    "cells are counted row by row", "cell = row * columns + column: do not swap rows and columns"
)
def _(trial):
    trial.agree(2, 2, (2, 2), 4)
    trial.agree(2, 1, (2, 1), 2)
    trial.agree(2, 4, (1, 2), 2)
    trial.agree(4, 6, (2, 3), 6)


@cells_of.requires("queries beyond the number of cells begin again", "query % (rows * columns)")
def _(trial):
    trial.agree(1, 2, (1, 2), 3)


@cells_of.requires("maps that do not divide evenly", "y * rows // h")
def _(trial):
    trial.agree(3, 3, (2, 2), 4)
    trial.agree(5, 7, (2, 3), 6)


class Taken(nn.Module):
    """Stands in a Q-Former's layer and keeps what arrives there."""

    def forward(self, x, keys, values, bias):
        """Keeps everything and changes nothing."""
        self.taken = keys, values, bias
        return x


def bare(features: int, grid, queries: int, heads: int) -> tuple[QFormer, Taken]:
    """The package's Q-Former without learned parts: its queries are zero, its norms and projections
    the identity."""
    former = QFormer(QFormerConfig(features, 0, heads, 4, queries, grid), features, features)
    former.queries = nn.Parameter(torch.zeros(queries, features), requires_grad=False)
    former.normalise = former.norm = former.start = former.out = nn.Identity()
    taken = Taken()
    former.layers = nn.ModuleList([taken])
    return former, taken


@exercise("06", lives=f"{MODULE}:QFormer.forward", points=2, replaces=False)
def query_start(features, h, w, grid, queries):
    """What an anchored query starts from: the mean over its cell of features + place code.

    features (N,h*w,D) -> (N,queries,D). Use `cells` and `place_code(h, w, D)` of
    crab_mini.model.qformer. (The learned query and the projection are left out here.)
    """
    raise NotImplementedError


@query_start.answered_by
def _(features, h, w, grid, queries):
    return bare(features.shape[-1], grid, queries, 1)[0](features, h, w)


@query_start.requires(
    "one cell: the mean, not the sum", "divide by the number of places in the cell"
)
def _(trial):
    features = trial.normal(1, 2, 4)
    more = trial.call(features + 1, 1, 2, (1, 1), 1) - trial.call(features, 1, 2, (1, 1), 1)
    trial.equal(more, torch.ones(1, 1, 4))


@query_start.requires("the place code is in it", "features + place_code(h, w, D)")
def _(trial):
    trial.agree(torch.zeros(1, 1, 4), 1, 1, (1, 1), 1)
    trial.agree(torch.zeros(1, 2, 4), 2, 1, (1, 1), 1)


@query_start.requires("each query has its own cell", "(Q,P) weights times (P,D)")
def _(trial):
    trial.agree(trial.normal(1, 4, 4), 2, 2, (2, 2), 4)
    trial.agree(trial.normal(1, 16, 4), 4, 4, (2, 2), 4)


@query_start.requires(
    "rows and columns are not swapped", "h comes first, in cells and in place_code"
)
def _(trial):
    trial.agree(trial.normal(1, 8, 4), 4, 2, (2, 1), 2)
    trial.agree(trial.normal(2, 15, 8), 3, 5, (1, 2), 3)


@query_start.requires("gradients reach the features", "no detach")
def _(trial):
    trial.gradients_agree(trial.normal(1, 4, 4).requires_grad_(), 2, 2, (2, 1), 2)


@exercise("06", lives=f"{MODULE}:QFormer.forward", points=2, replaces=False)
def keys_values_bias(features, h, w, grid, queries, pull):
    """What the cross-attention of anchored queries gets: keys (N,P,D), values (N,P,D), bias
    (n,queries,P).

    keys: features + place code; values: features alone (where is for the looking, what is for the
    taking); bias: pull (n,) of each head on the places of the query's own cell, 0 elsewhere.
    """
    raise NotImplementedError


@keys_values_bias.answered_by
def _(features, h, w, grid, queries, pull):
    former, taken = bare(features.shape[-1], grid, queries, len(pull))
    former.pull = nn.Parameter(pull)
    former(features, h, w)
    return tuple(part.detach() for part in taken.taken)


def parts(trial, *arguments):
    """(the answer's three results, the package's)."""
    found = trial.call(*arguments)
    trial.expect(
        isinstance(found, (tuple, list)) and len(found) == 3,
        "keys, values and bias",
        repr(type(found).__name__),
    )
    return found, trial.exercise.original()(*arguments)


@keys_values_bias.requires("keys carry the place", "features + place_code(h, w, D)")
def _(trial):
    for h, w in ((1, 1), (2, 3)):
        found, wanted = parts(trial, trial.normal(1, h * w, 4), h, w, (1, 1), 1, torch.ones(1))
        trial.equal(found[0], wanted[0])


@keys_values_bias.requires("values do not carry the place", "the features as they came")
def _(trial):
    found, wanted = parts(trial, trial.normal(1, 2, 4), 1, 2, (1, 1), 1, torch.ones(1))
    trial.equal(found[1], wanted[1])


@keys_values_bias.requires("each head pulls by its own amount", "pull[:, None, None] * cells")
def _(trial):
    found, wanted = parts(trial, trial.normal(1, 2, 4), 1, 2, (1, 1), 1, torch.tensor([1.0, 3.0]))
    trial.equal(found[2], wanted[2])


@keys_values_bias.requires("outside its cell a query is free to look", "0 there, not -inf")
def _(trial):
    found, wanted = parts(trial, trial.normal(1, 4, 4), 2, 2, (2, 1), 2, torch.tensor([2.0]))
    trial.equal(found[2], wanted[2])
    found, wanted = parts(trial, trial.normal(2, 15, 8), 3, 5, (2, 2), 5, trial.normal(2))
    trial.equal(found, wanted)
