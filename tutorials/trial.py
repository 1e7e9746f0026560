"""One property being checked on one answer: inputs are made, the answer is called on copies, results compared."""

import copy
import inspect
import sys
import zlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .compare import describe, difference
from .exercise import Exercise

TOLERANCE = 1e-4


class Broken(Exception):
    """A property does not hold; `expected`, `found`: what was to be seen and what was."""

    def __init__(self, expected: str, found: str):
        super().__init__(f"expected {expected}, found {found}")
        self.expected, self.found = expected, found


class Changed(Broken):
    """An input was written over."""


class Trial:
    """One property being checked on one answer: makes inputs, calls the answer, compares.

    rng, numbers: a torch generator and a numpy one of this seed, exercise and property.
    """

    def __init__(self, exercise: Exercise, answer: Callable, seed: int, name: str):
        number = zlib.crc32(f"{exercise.name}/{name}/{seed}".encode())
        self.rng, self.numbers = (
            torch.Generator().manual_seed(number),
            np.random.default_rng(number),
        )
        self.exercise, self.answer = exercise, answer
        self.shown, self.called_package = "", False

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Random numbers with a normal distribution, float32."""
        return scale * torch.randn(shape, generator=self.rng)

    def whole(self, low: int, high: int, *shape: int) -> Tensor:
        """Random whole numbers from low to high - 1."""
        return torch.randint(low, high, shape, generator=self.rng)

    def call(self, *arguments, writes: bool = False, **named):
        """The student's function on copies of the arguments. writes: it may change them (the copies
        are returned too).

        Raises Changed where it changes one that it may not.
        """
        self.show(arguments, named)
        given, given_named = fresh(arguments), fresh(named)
        codes = self.exercise.codes()

        def watch(frame, event, _argument):
            self.called_package |= event == "call" and frame.f_code in codes

        before = sys.getprofile()
        sys.setprofile(watch)
        try:
            result = self.answer(*given, **given_named)
        finally:
            sys.setprofile(before)
        if writes:
            return result, given
        for one, other in zip((*given, *given_named.values()), (*arguments, *named.values())):
            if (
                isinstance(other, (Tensor, np.ndarray, list, dict))
                and difference(one, other, 0.0) is not None
            ):
                raise Changed("inputs that are not written to", "an input was changed in place")
        return result

    def show(self, arguments: tuple, named: dict) -> None:
        """Notes the input, for the report."""
        try:
            bound = inspect.signature(self.exercise.stub).bind(*arguments, **named).arguments
        except TypeError:
            bound = dict(enumerate(arguments)) | named
        self.shown = ", ".join(f"{name} = {describe(value)}" for name, value in bound.items())

    def expect(self, holds: bool, expected: str, found: str) -> None:
        """Raises Broken unless it holds."""
        if not holds:
            raise Broken(expected, found)

    def equal(self, found, expected, tolerance: float = TOLERANCE) -> None:
        """Raises Broken where a value is not as expected."""
        text = difference(found, expected, tolerance)
        if text is not None:
            head, _, tail = text.partition(", found ")
            raise Broken(head.replace("expected ", "", 1), tail)

    def agree(self, *arguments, tolerance: float = TOLERANCE, **named) -> None:
        """Raises Broken where the answer differs from the package's function on these arguments."""
        self.equal(
            self.call(*arguments, **named),
            self.exercise.original()(*fresh(arguments), **fresh(named)),
            tolerance,
        )

    def gradients_agree(self, *arguments, tolerance: float = TOLERANCE, **named) -> None:
        """Raises Broken where the gradient of an argument that asks for one differs from the
        package's."""
        mine = self.gradients(self.run, arguments, named)
        theirs = self.gradients(self.exercise.original(), arguments, named)
        names = list(inspect.signature(self.exercise.stub).parameters)
        for place, got, wanted in zip(range(len(arguments)), mine, theirs):
            if wanted is None:
                continue
            self.expect(got is not None, f"a gradient that reaches {names[place]}", "none")
            text = difference(got, wanted, tolerance)
            self.expect(text is None, f"the package's gradient of {names[place]}", text or "")

    def run(self, *arguments, **named):
        """The student's function on the arguments themselves, so that gradients reach them."""
        self.show(arguments, named)
        return self.answer(*arguments, **named)

    @staticmethod
    def gradients(function: Callable, arguments: tuple, named: dict) -> list[Tensor | None]:
        """The gradients of sum(output * fixed weights) with respect to every argument; None where
        there is none."""
        leaves = [
            a.detach().clone().requires_grad_(a.requires_grad)
            if isinstance(a, Tensor)
            else copy.deepcopy(a)
            for a in arguments
        ]
        result = function(
            *[leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves], **fresh(named)
        )
        if not isinstance(result, Tensor):
            raise Broken("a tensor", describe(result))
        wanted = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
        if not result.requires_grad:
            return [None] * len(arguments)
        weights = torch.linspace(-1.0, 2.0, result.numel(), dtype=result.dtype).reshape(
            result.shape
        )
        found = iter(torch.autograd.grad((result * weights).sum(), wanted, allow_unused=True))
        return [
            next(found) if isinstance(leaf, Tensor) and leaf.requires_grad else None
            for leaf in leaves
        ]


def fresh(values):
    """Copies of arguments: tensors cloned (asking for gradients as before), models as they are."""
    if isinstance(values, dict):
        return {key: fresh(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values)(fresh(value) for value in values)
    if isinstance(values, Tensor):
        return values.detach().clone().requires_grad_(values.requires_grad)
    return (
        values if isinstance(values, torch.nn.Module) or callable(values) else copy.deepcopy(values)
    )
