"""Notebook 05: the parts of the language model."""

import torch
from torch.func import functional_call

from crab_mini.config import LLMConfig
from crab_mini.model.llm import LLM, KVCache, RMSNorm, apply_rotary_emb, rotary_table

from ..exercise import exercise

MODEL = "crab_mini.model.llm"


@exercise("05", lives=f"{MODEL}:RMSNorm.forward")
def rms_norm(x, weight, eps):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis: x (...,D), weight (D,) -> (...,D)."""
    raise NotImplementedError


@rms_norm.answered_by
def _(x, weight, eps):
    return functional_call(RMSNorm(x.shape[-1], eps), {"weight": weight}, (x,))


@rms_norm.placed_by
def _(answer):
    return lambda self, x: answer(x, self.weight, self.eps)


@rms_norm.requires(
    "the mean square of the result is one",
    "the root of the MEAN of the squares; no mean is subtracted",
)
def _(trial):
    trial.agree(torch.tensor([3.0, 4.0]), torch.ones(2), 1e-5)
    trial.agree(torch.tensor([5.0, 5.0, 5.0]), torch.ones(3), 1e-5)


@rms_norm.requires(
    "eps stands under the root", "sqrt(mean + eps), not sqrt(mean) + eps: a tiny x shows it"
)
def _(trial):
    trial.agree(torch.tensor([3e-4, 4e-4]), torch.ones(2), 1e-5)
    trial.agree(torch.tensor([0.3, -0.4]), torch.ones(2), 0.1)


@rms_norm.requires("zero stays zero", "eps keeps the root from zero")
def _(trial):
    trial.agree(torch.zeros(2), torch.ones(2), 1e-5)


@rms_norm.requires("each channel has its weight", "times weight, after the division")
def _(trial):
    trial.agree(torch.tensor([3.0, 4.0]), torch.tensor([2.0, -1.0]), 1e-5)


@rms_norm.requires("each token by itself", "mean(-1, keepdim=True)")
def _(trial):
    trial.agree(trial.normal(2, 2), torch.ones(2), 1e-5)
    trial.agree(trial.normal(2, 3, 4), trial.normal(4), 1e-5)


@rms_norm.requires("gradients reach x and weight", "the root depends on x, too: no detach")
def _(trial):
    trial.gradients_agree(
        trial.normal(3, 4).requires_grad_(), trial.normal(4).requires_grad_(), 1e-5
    )


@exercise("05", lives=f"{MODEL}:rotary_table")
def rotary_table_of(positions, size, theta):
    """Cosine and sine of position * theta^(-2i/size), i = 0 .. size/2 - 1: positions (B,L) -> two
    (B,1,L,size/2)."""
    raise NotImplementedError


rotary_table_of.answered_by(rotary_table)


@rotary_table_of.requires(
    "two tables of shape (B,1,L,size/2)", "an axis of length one stands where the heads are"
)
def _(trial):
    found = trial.call(torch.tensor([[0, 1, 2]]), 4, 100.0)
    trial.equal([tuple(t.shape) for t in found], [(1, 1, 3, 2)] * 2)


@rotary_table_of.requires("position 0 is not turned", "cos 0 = 1 and sin 0 = 0, cosine first")
def _(trial):
    trial.agree(torch.tensor([[0]]), 2, 100.0)


@rotary_table_of.requires(
    "the first pair turns by one radian a position", "i = 0: theta^0 = 1; radians, not degrees"
)
def _(trial):
    trial.agree(torch.tensor([[1, 2]]), 2, 100.0)


@rotary_table_of.requires(
    "pair i turns by theta^(-2i/size)", "the exponents are 0, 2/size, 4/size, .. below one"
)
def _(trial):
    trial.agree(torch.tensor([[1]]), 4, 100.0)
    trial.agree(torch.tensor([[1, 7]]), 8, 10000.0)


@rotary_table_of.requires(
    "each row has its own positions", "the angle follows positions, not 0 .. L-1"
)
def _(trial):
    trial.agree(torch.tensor([[0, 1], [5, 6]]), 4, 100.0)


@exercise("05", lives=f"{MODEL}:apply_rotary_emb", points=2)
def apply_rotary(x, cos, sin):
    """LLaMA's rotation: dimension i together with i + size/2 by their angle. x (B,n,L,size), cos
    and sin (B,1,L,size/2).

    first' = first cos - second sin, second' = second cos + first sin.
    """
    raise NotImplementedError


apply_rotary.answered_by(apply_rotary_emb)


def angles(positions: list[int], size: int):
    """cos and sin for one row."""
    return rotary_table(torch.tensor([positions]), size, 100.0)


@apply_rotary.requires("a turn of zero changes nothing", "cos 0 = 1, sin 0 = 0")
def _(trial):
    trial.agree(trial.normal(1, 1, 1, 4), *angles([0], 4))


@apply_rotary.requires(
    "a pair turns from the first towards the second", "the minus stands in the first half"
)
def _(trial):
    trial.agree(torch.tensor([1.0, 0.0])[None, None, None], *angles([1], 2))
    trial.agree(torch.tensor([0.0, 1.0])[None, None, None], *angles([1], 2))


@apply_rotary.requires(
    "dimension i belongs to i + size/2", "halves (0 with 2, 1 with 3), not neighbours (0 with 1)"
)
def _(trial):
    for x in torch.eye(4):
        trial.agree(x[None, None, None], *angles([1], 4))


@apply_rotary.requires(
    "scores depend on the distance of two positions alone", "a rotation, the same for q and k"
)
def _(trial):
    q, k = trial.normal(1, 1, 1, 4), trial.normal(1, 1, 1, 4)

    def score(a: int, b: int):
        return (trial.call(q, *angles([a], 4)) * trial.call(k, *angles([b], 4))).sum()

    trial.equal(score(7, 3), score(5, 1), 1e-3)


@apply_rotary.requires("heads and rows turn alike", "cos and sin broadcast over the heads")
def _(trial):
    cos, sin = rotary_table(torch.tensor([[0, 1, 2], [4, 5, 6]]), 8, 100.0)
    trial.agree(trial.normal(2, 3, 3, 8), cos, sin)


@exercise("05", lives=f"{MODEL}:LLM.encode", points=2, replaces=False)
def token_positions(attention_mask, seen):
    """Where new tokens stand: attention_mask (B,L) bool, padded on the left; seen (B,): real tokens
    before these.

    -> (B,L) whole numbers. Padding takes no place: the first real token of a row comes right after
    the `seen` ones, each further one a place later. What stands at padding does not matter, nor a
    shift that is the same for all rows.
    """
    raise NotImplementedError


def padded(*rows: str) -> torch.Tensor:
    """`0011` -> (B,L) bool."""
    return torch.tensor([[c == "1" for c in row] for row in rows])


def places(trial, attention_mask, seen) -> tuple:
    """The answer's positions of the real tokens, and the right ones, both from the shift on that it
    gives place 0."""
    found = trial.call(attention_mask, torch.tensor(seen))
    trial.expect(
        getattr(found, "shape", None) == attention_mask.shape,
        f"shape {tuple(attention_mask.shape)}",
        str(tuple(getattr(found, "shape", ()))),
    )
    shift = trial.run(padded("1"), torch.tensor([0])).flatten()[0]
    wanted = attention_mask.long().cumsum(1) - 1 + torch.tensor(seen)[:, None]
    return (found - shift)[attention_mask], wanted[attention_mask]


@token_positions.requires("without padding they count up", "0, 1, 2, ..")
def _(trial):
    trial.equal(*places(trial, padded("11"), [0]))


@token_positions.requires(
    "padding takes no place", "count real tokens: the cumulative sum of the mask"
)
def _(trial):
    trial.equal(*places(trial, padded("01"), [0]))
    trial.equal(*places(trial, padded("0011", "1111"), [0, 0]))


@token_positions.requires(
    "tokens after a cache go on where it ended", "plus `seen`, which holds real tokens only"
)
def _(trial):
    trial.equal(*places(trial, padded("1"), [3]))
    trial.equal(*places(trial, padded("11"), [5]))


@token_positions.requires("each row goes on from its own count", "seen has one number a row")
def _(trial):
    trial.equal(*places(trial, padded("1", "1"), [2, 4]))
    trial.equal(*places(trial, padded("111", "111"), [0, 9]))


@exercise("05", lives=f"{MODEL}:KVCache.write", points=2)
def cache_write(keys, values, length, k, v):
    """One layer's cache: keys and values (B,n,capacity,d) hold `length` tokens; k, v (B,n,L,d) are
    written behind them.

    In place. -> all keys and all values written so far, (B,n,length+L,d) each. ValueError if they
    do not fit.
    """
    raise NotImplementedError


@cache_write.answered_by
def _(keys, values, length, k, v):
    cache = KVCache(1, keys.shape[2])
    cache.kept, cache.length = [(keys, values)], length
    return cache.write(0, k, v)


@cache_write.placed_by
def _(answer):
    def write(self, layer, k, v):
        if self.kept[layer] is None:
            self.kept[layer] = tuple(
                t.new_zeros(*t.shape[:2], self.capacity, t.shape[3]) for t in (k, v)
            )
        return answer(*self.kept[layer], self.length, k, v)

    return write


def written(trial, capacity: int, length: int, new: int, heads: int = 1, width: int = 1):
    """Results of the answer and of the package, and the memory of the two after it."""
    arguments = [
        trial.normal(1, heads, capacity, width),
        trial.normal(1, heads, capacity, width),
        length,
        trial.normal(1, heads, new, width),
        trial.normal(1, heads, new, width),
    ]
    theirs = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    found, mine = trial.call(*arguments, writes=True)
    return found, trial.exercise.original()(*theirs), mine[:2], theirs[:2]


@cache_write.requires("new tokens stand behind the old ones", "columns length .. length + L - 1")
def _(trial):
    for length, new in ((1, 1), (2, 2)):
        found, wanted, _, _ = written(trial, length + new, length, new)
        trial.equal(found, wanted)


@cache_write.requires("only what is written is given back", "up to length + L, not to the capacity")
def _(trial):
    found, wanted, _, _ = written(trial, 4, 1, 1)
    trial.equal(found, wanted)


@cache_write.requires(
    "keys and values are kept for the next token", "write into the memory; do not just concatenate"
)
def _(trial):
    _, _, mine, theirs = written(trial, 3, 1, 1, heads=2, width=2)
    trial.equal(mine, theirs)


@cache_write.requires(
    "more than fits is refused", "ValueError when length + L is above the capacity"
)
def _(trial):
    try:
        trial.call(
            torch.zeros(1, 1, 1, 1),
            torch.zeros(1, 1, 1, 1),
            1,
            torch.ones(1, 1, 1, 1),
            torch.ones(1, 1, 1, 1),
            writes=True,
        )
    except ValueError as error:
        trial.expect(
            "allocated" in str(error)
            or "fit" in str(error)
            or "capacity" in str(error)
            or "room" in str(error),
            "a ValueError that speaks of the capacity",
            f"ValueError: {str(error)[:60]}",
        )
        return
    trial.expect(False, "ValueError", "no error")


@exercise("05", lives=f"{MODEL}:LLM.generate", points=3)
def generate(llm, ids, attention_mask, new_tokens):
    """Greedy answers without a cache: ids (B,L), padded on the left where attention_mask (B,L) is
    False.

    -> the new ids alone, (B, new_tokens). `llm(ids, attention_mask)` gives logits (B,L,V), those at
    l for token l + 1.
    """
    raise NotImplementedError


@generate.answered_by
def _(llm, ids, attention_mask, new_tokens):
    return llm.generate(ids, new_tokens, attention_mask)


@generate.placed_by
def _(answer):
    def whole(self, ids, max_new_tokens, attention_mask=None, eos=None):
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask
        return answer(self, ids, mask.bool(), max_new_tokens)

    return whole


def small_model(seed: int) -> LLM:
    """A language model whose next token depends on all tokens before."""
    torch.manual_seed(seed)
    llm = LLM(LLMConfig(vocab_size=19, dim=16, layers=2, heads=2, kv_heads=2, ffn_dim=24)).eval()
    for p in llm.parameters():
        p.requires_grad_(False)
        if p.ndim == 2:
            p.mul_(8)
    return llm


@generate.requires("the first new token follows from the last one", "argmax of logits[:, -1]")
def _(trial):
    llm = small_model(1)
    for length in (1, 4):
        given = llm, trial.whole(0, 19, 1, length), torch.ones(1, length).bool(), 1
        trial.equal(trial.call(*given)[:, -1:], trial.exercise.original()(*given))


@generate.requires("only the new ids are given back", "without the prompt")
def _(trial):
    found = trial.call(small_model(2), trial.whole(0, 19, 1, 3), torch.ones(1, 3).bool(), 2)
    trial.expect(
        getattr(found, "shape", None) == (1, 2),
        "shape (1, 2)",
        str(tuple(getattr(found, "shape", ()))),
    )


@generate.requires("each new token is read for the next one", "append it to the ids")
def _(trial):
    for seed in (3, 4, 5):
        trial.agree(small_model(seed), trial.whole(0, 19, 1, 3), torch.ones(1, 3).bool(), 6)


@generate.requires(
    "padding changes nothing", "pass the mask on, and append True to it for each new token"
)
def _(trial):
    for seed in (6, 7, 8):
        ids = trial.whole(0, 19, 2, 6)
        trial.agree(small_model(seed), ids, padded("000111", "111111"), 6)
