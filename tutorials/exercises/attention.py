"""Notebook 04: softmax(q k^T / sqrt(d)) v, and who may look where."""

import torch

from ..exercise import exercise


@exercise("04", lives="crab_mini.model.attention:attend", points=3)
def attend(q, k, v, mask=None, causal=False):
    """softmax(q k^T / sqrt(d) + mask) v: q (B,n,L,d), k and v (B,n,K,d) -> (B,n,L,d).

    mask: broadcastable to (B,n,L,K); bool (True = may look) or float (added to the scores). causal:
    query l sees keys 0 .. l. Write it out: no F.scaled_dot_product_attention.
    """
    raise NotImplementedError


def three(trial, length: int, width: int, keys: int | None = None, heads: int = 1, batch: int = 1):
    """Random q, k, v."""
    shapes = [(batch, heads, length, width)] + [(batch, heads, keys or length, width)] * 2
    return [trial.normal(*shape) for shape in shapes]


@attend.requires(
    "the weights of each query sum to one", "softmax over the keys, the last axis of the scores"
)
def _(trial):
    for length, keys in ((1, 2), (2, 2), (3, 5)):
        q, k, v = three(trial, length, 2, keys)
        trial.equal(trial.call(q, k, torch.ones_like(v)), torch.ones_like(q))


@attend.requires("scores are divided by sqrt(d)", "d is the width of one head, the last axis of q")
def _(trial):
    for width, heads in ((2, 1), (4, 1), (16, 1), (4, 2)):
        trial.agree(*three(trial, 1, width, 2, heads))


@attend.requires(
    "masked keys have no weight, and the others' weights still sum to one",
    "mask the scores with -inf before the softmax",
)
def _(trial):
    for keys in (2, 4):
        q, k, v = three(trial, 2, 2, keys)
        mask = torch.arange(keys) < keys - 1
        trial.equal(
            trial.call(q, k, torch.ones_like(v), mask[None, None, None]), torch.ones_like(q)
        )
        trial.agree(q, k, v, mask[None, None, None])


@attend.requires(
    "a float mask is added to the scores", "masks come in two kinds: look at mask.dtype"
)
def _(trial):
    q, k, v = three(trial, 1, 2, 2)
    trial.agree(q, k, v, torch.tensor([0.0, 1.0])[None, None, None])
    q, k, v = three(trial, 3, 2, 4, heads=2)
    trial.agree(q, k, v, trial.normal(2, 3, 4)[None])


@attend.requires(
    "causal: a query sees itself and what lies before", "True on and below the diagonal"
)
def _(trial):
    for length in (2, 3, 5):
        q, k, v = three(trial, length, 2)
        trial.agree(q, k, v, None, True)


@attend.requires("heads and rows are kept apart", "the products run over the last two axes")
def _(trial):
    trial.agree(*three(trial, 2, 4, 3, heads=2, batch=2))


@attend.requires("the gradient reaches q, k and v", "no detach, no item(), no numpy on the way")
def _(trial):
    trial.gradients_agree(*[t.requires_grad_() for t in three(trial, 2, 2)])
    trial.gradients_agree(*[t.requires_grad_() for t in three(trial, 4, 4, heads=2)], None, True)


@exercise("04", lives="crab_mini.model.llm:causal_mask", points=2)
def causal_mask(attention_mask, queries):
    """Who may look at whom: attention_mask (B,K) bool over all keys, the last `queries` of which
    ask.

    -> (B,1,queries,K) bool: a query sees the real keys before itself (True in attention_mask), and
    always itself, so that not even a padded query is left with nothing.
    """
    raise NotImplementedError


def mask(*rows: str) -> torch.Tensor:
    """`0011` -> (B,K) bool."""
    return torch.tensor([[c == "1" for c in row] for row in rows])


@causal_mask.requires("no query sees a key after itself", "compare the columns of key and query")
def _(trial):
    for length in (2, 3):
        found = trial.call(mask("1" * length), length)
        after = torch.ones(length, length).triu(1).bool()
        trial.expect(
            found.shape == (1, 1, length, length),
            f"shape (1, 1, {length}, {length})",
            str(tuple(found.shape)),
        )
        trial.expect(not bool(found[0, 0][after].any()), "False above the diagonal", "True")


@causal_mask.requires(
    "every query sees itself, a padded one too",
    "a row of nothing but -inf is NaN after the softmax",
)
def _(trial):
    for row in ("01", "0011"):
        found = trial.call(mask(row), len(row))
        trial.expect(bool(found[0, 0].diagonal().all()), "True on the whole diagonal", "False")


@causal_mask.requires(
    "the queries are the LAST keys", "with a cache, the first query stands at column K - queries"
)
def _(trial):
    for row, queries in (("11", 1), ("1111", 2), ("11111", 1)):
        trial.agree(mask(row), queries)


@causal_mask.requires("padding is invisible to every other query", "& attention_mask")
def _(trial):
    found = trial.call(mask("011"), 3)
    trial.expect(not bool(found[0, 0, 1:, 0].any()), "False in the padded key's column", "True")


@causal_mask.requires("rows are padded differently", "attention_mask keeps its first axis")
def _(trial):
    trial.agree(mask("011", "111"), 3)
    trial.agree(mask("00111", "11111", "01111"), 2)


@exercise("04", lives="crab_mini.model.attention:attend", points=2, replaces=False)
def grouped_attend(q, k, v):
    """Grouped-query attention: q (B,n,L,d), k and v (B,m,K,d) with n a multiple of m -> (B,n,L,d).

    Each head of k and v serves n / m neighbouring heads of q: kv head j the query heads j * (n/m)
    .. (j+1) * (n/m) - 1.
    """
    raise NotImplementedError


@grouped_attend.answered_by
def _(q, k, v):
    from crab_mini.model.attention import attend as package_attend

    return package_attend(q, k, v)


def grouped(trial, heads: int, shared: int, length: int = 2, width: int = 2, batch: int = 1):
    """q with `heads`, k and v with `shared` heads."""
    return [trial.normal(batch, n, length, width) for n in (heads, shared, shared)]


@grouped_attend.requires("as many heads each way is plain attention", "softmax(q k^T / sqrt(d)) v")
def _(trial):
    trial.agree(*grouped(trial, 1, 1))
    trial.agree(*grouped(trial, 2, 2))


@grouped_attend.requires("one kv head serves all", "it is used by every query head")
def _(trial):
    trial.agree(*grouped(trial, 2, 1))


@grouped_attend.requires(
    "neighbouring query heads share a kv head", "repeat_interleave (0 0 1 1), not repeat (0 1 0 1)"
)
def _(trial):
    trial.agree(*grouped(trial, 4, 2))
    trial.agree(*grouped(trial, 6, 3, 3, 4, 2))


@grouped_attend.requires(
    "gradients of all heads that share are added", "no detach, no copy outside autograd"
)
def _(trial):
    trial.gradients_agree(*[t.requires_grad_() for t in grouped(trial, 4, 2)])
