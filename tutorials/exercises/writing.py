"""Notebook 07: how two senses enter one sequence."""

import torch

from ..exercise import exercise


@exercise("07", lives="crab_mini.model.crab:Crab.embed", points=2, replaces=False)
def masked_write(embeds, slots, tokens):
    """The one masked write: embeds (B,L,D), slots (B,L) bool, tokens (M,D), M the number of slots
    in all rows.

    -> (B,L,D): the slots hold the tokens, in the order of the rows and, within a row, of the
    places; all else stays.
    """
    raise NotImplementedError


def slots_of(*rows: str) -> torch.Tensor:
    """`0110` -> (B,L) bool."""
    return torch.tensor([[c == "1" for c in row] for row in rows])


def expected_write(embeds, slots, tokens) -> torch.Tensor:
    """Place by place, as slow as it is plain."""
    result, taken = embeds.clone(), 0
    for b in range(slots.shape[0]):
        for place in range(slots.shape[1]):
            if slots[b, place]:
                result[b, place] = tokens[taken]
                taken += 1
    return result


def write(trial, *rows: str, width: int = 2) -> None:
    """The answer on these slots."""
    slots = slots_of(*rows)
    embeds, tokens = trial.normal(*slots.shape, width), trial.normal(int(slots.sum()), width)
    trial.equal(trial.call(embeds, slots, tokens), expected_write(embeds, slots, tokens))


@masked_write.requires(
    "one row: slots are filled from the left", "boolean indexing or masked_scatter"
)
def _(trial):
    write(trial, "01", width=1)
    write(trial, "0110")


@masked_write.requires(
    "each row has slots of its own", "a mask for each row, not the first row's for all"
)
def _(trial):
    write(trial, "10", "01", width=1)
    write(trial, "1100", "0011")


@masked_write.requires("tokens are taken row after row", "row 0's slots first, then row 1's")
def _(trial):
    write(trial, "11", "11", width=1)
    write(trial, "110", "011", "101")


@masked_write.requires(
    "rows may have different numbers of slots", "tokens are one list for the whole batch"
)
def _(trial):
    write(trial, "1110", "0000", "0100")


@masked_write.requires(
    "gradients reach the tokens and what stays",
    "torch.where or masked_scatter; no .data, no detach",
)
def _(trial):
    slots = slots_of("0110", "1000")
    embeds, tokens = trial.normal(2, 4, 3), trial.normal(3, 3)
    weights = trial.normal(2, 4, 3)

    def gradients(function):
        leaves = embeds.clone().requires_grad_(), tokens.clone().requires_grad_()
        result = function(leaves[0].clone(), slots, leaves[1].clone())
        trial.expect(result.requires_grad, "a result that gradients flow through", "none")
        return torch.autograd.grad((result * weights).sum(), leaves, allow_unused=True)

    mine, theirs = gradients(trial.run), gradients(expected_write)
    for name, got, wanted in zip(("embeds", "tokens"), mine, theirs):
        trial.expect(got is not None, f"a gradient that reaches {name}", "none")
        trial.equal(got, wanted)


@exercise("07", lives="crab_mini.model.crab:Crab.embed", points=2, replaces=False)
def word_before(ids, slots):
    """Which word a placeholder belongs to: ids (B,L), slots (B,L) bool -> (B,L), at each slot the
    id of the last place before it that is no slot (the number of its second). What stands elsewhere
    does not matter.

    `<s> 0 V V A 1 V V A` -> at the slots 0 0 0 and 1 1 1. The first place is never a slot.
    """
    raise NotImplementedError


def expected_words(ids, slots) -> torch.Tensor:
    """(M,): the word before each slot, row by row."""
    found = []
    for row, own in zip(ids.tolist(), slots.tolist()):
        for place, here in enumerate(own):
            if here:
                found.append(row[max(p for p in range(place) if not own[p])])
    return torch.tensor(found)


def words(trial, *rows: str) -> None:
    """The answer on these slots, ids all different."""
    slots = slots_of(*rows)
    ids = torch.arange(slots.numel()).reshape(slots.shape) + 5
    found = trial.call(ids, slots)
    trial.expect(
        getattr(found, "shape", None) == ids.shape,
        f"shape {tuple(ids.shape)}",
        str(tuple(getattr(found, "shape", ()))),
    )
    trial.equal(found[slots], expected_words(ids, slots))


@word_before.requires(
    "the first slot of a run reads the place before it", "place - 1, where that is a word"
)
def _(trial):
    words(trial, "01")
    words(trial, "001")


@word_before.requires(
    "all slots of a run read the same word", "the last place that is no slot: cummax of the places"
)
def _(trial):
    words(trial, "011")
    words(trial, "00111")


@word_before.requires("each run has its own word", "not the row's first word for all")
def _(trial):
    words(trial, "0101")
    words(trial, "00110011")


@word_before.requires("rows do not read each other's words", "search within the row")
def _(trial):
    words(trial, "0110", "0011")
    words(trial, "00111", "01011", "00000")
