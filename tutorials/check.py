"""The exercises' machinery: a stub, what must hold of an answer, and a check that says which of it does not.

    @exercise("04", lives="crab_mini.model.attention:attend")       # which notebook; where the package has the answer
    def attend(q, k, v): ...                                        # the stub: what students copy, raises
                                                                    # NotImplementedError
    @attend.requires("a query's weights sum to one", hint="softmax over the keys")
    def _(trial): trial.equal(trial.call(q, k, ones), ones)         # one property, small inputs before large ones

What is unusual: there are no solutions here. An answer is compared with the package's own function, or held to what
must be true of any answer. Properties stand in an order in which the first broken one names the mistake. `check` runs
on fixed inputs, the grading command on inputs of its own seed. `using` puts an answer into the package itself.
    check(attend)                      prints "attend: not done yet", what is broken, or "attend: right"
    with using(attend): model(batch)   the model computes with the student's function
"""

import contextlib
import copy
import importlib
import inspect
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .compare import describe, difference

EXERCISES: dict[str, "Exercise"] = {}
UNCHANGED = "the inputs are left as they were"      # holds in every exercise, unless a property says otherwise
TOLERANCE = 1e-4


class Broken(Exception):
    """A property does not hold; `expected`, `found`: what was to be seen and what was."""

    def __init__(self, expected: str, found: str):
        super().__init__(f"expected {expected}, found {found}")
        self.expected, self.found = expected, found


class Changed(Broken):
    """An input was written over."""


@dataclass
class Report:
    """What became of one answer. state: passed, not done yet, broken, package (it calls the package's function)."""
    exercise: str
    state: str
    broken: str = ""            # the property that does not hold
    hint: str = ""
    shown: str = ""             # the input that shows it
    expected: str = ""
    found: str = ""

    def __str__(self) -> str:
        if self.state == "passed":
            return f"{self.exercise}: right"
        if self.state == "not done yet":
            return f"{self.exercise}: not done yet"
        if self.state == "package":
            return f"{self.exercise}: right, but it calls the package's own function: write it yourself"
        lines = [f"{self.exercise}: not right yet", f"  broken:   {self.broken}", f"  hint:     {self.hint}",
                 f"  input:    {self.shown}"]
        lines += [f"  expected: {self.expected}"] if self.expected else []
        return "\n".join([*lines, f"  found:    {self.found}"])


@dataclass
class Property:
    """Something that must hold of every right answer, and the hint for who breaks it."""
    name: str
    hint: str
    holds: Callable[["Trial"], None]


@dataclass
class Exercise:
    """One function to write.

    lives: "module:name" or "module:Class.method", where the package computes the same; replaces: whether `using` can
    put an answer there. shortcuts: other functions of the package that would be the answer.
    """
    stub: Callable
    notebook: str
    points: int
    lives: str
    shortcuts: tuple[str, ...] = ()
    replaces: bool = True
    place: str = ""                             # where `using` puts an answer, if not where `lives` says
    properties: list[Property] = field(default_factory=list)
    package_answer: Callable | None = None      # (*the stub's arguments), where the package's arguments differ
    package_form: Callable | None = None        # answer -> what is put into the package, where they differ

    @property
    def name(self) -> str:
        """The function's name."""
        return self.stub.__name__

    def requires(self, name: str, hint: str) -> Callable:
        """Decorator: a property, to be checked after those before it."""
        def add(holds: Callable) -> Callable:
            self.properties.append(Property(name, hint, holds))
            return holds
        return add

    def answered_by(self, function: Callable) -> Callable:
        """Decorator: how the package's function is called with the stub's arguments."""
        self.package_answer = function
        return function

    def placed_by(self, function: Callable) -> Callable:
        """Decorator: an answer -> what `using` puts in the package's place."""
        self.package_form = function
        return function

    def original(self) -> Callable:
        """The package's function with the stub's arguments."""
        return self.package_answer or find(self.lives)[2]

    def where(self) -> str:
        """`crab_mini/model/attention.py: attend`, to be read after the exercise."""
        module, _, name = self.lives.partition(":")
        return f"{module.replace('.', '/')}.py: {name}"

    def codes(self) -> set:
        """The code objects whose running gives away that an answer calls the package."""
        functions = [find(path)[2] for path in (self.lives, *self.shortcuts)]
        return {code for f in functions if (code := getattr(inspect.unwrap(f), "__code__", None)) is not None}


def exercise(notebook: str, lives: str, points: int = 1, shortcuts: tuple[str, ...] = (),
             replaces: bool = True, place: str = "") -> Callable[[Callable], Exercise]:
    """Decorator of a stub: registers the exercise under the stub's name."""
    def register(stub: Callable) -> Exercise:
        if stub.__name__ in EXERCISES:
            raise ValueError(f"exercise {stub.__name__}: there is one of this name already")
        EXERCISES[stub.__name__] = Exercise(stub, notebook, points, lives, shortcuts, replaces, place)
        return EXERCISES[stub.__name__]
    return register


def find(lives: str) -> tuple[object, str, Callable]:
    """"module:Class.method" -> (the class or module that holds it, its name there, the function)."""
    module, _, dotted = lives.partition(":")
    *owners, name = dotted.split(".")
    owner = importlib.import_module(module)
    for part in owners:
        owner = owner[part] if isinstance(owner, dict) else getattr(owner, part)
    return owner, name, getattr(owner, name)


class Trial:
    """One property being checked on one answer: makes inputs, calls the answer, compares.

    rng, numbers: a torch generator and a numpy one of this seed, exercise and property.
    """

    def __init__(self, exercise: Exercise, answer: Callable, seed: int, name: str):
        number = zlib.crc32(f"{exercise.name}/{name}/{seed}".encode())
        self.rng, self.numbers = torch.Generator().manual_seed(number), np.random.default_rng(number)
        self.exercise, self.answer = exercise, answer
        self.shown, self.called_package = "", False

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Random numbers with a normal distribution, float32."""
        return scale * torch.randn(shape, generator=self.rng)

    def whole(self, low: int, high: int, *shape: int) -> Tensor:
        """Random whole numbers from low to high - 1."""
        return torch.randint(low, high, shape, generator=self.rng)

    def call(self, *arguments, writes: bool = False, **named):
        """The student's function on copies of the arguments. writes: it may change them (the copies are returned too).

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
            if isinstance(other, (Tensor, np.ndarray, list, dict)) and difference(one, other, 0.0) is not None:
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
        self.equal(self.call(*arguments, **named), self.exercise.original()(*fresh(arguments), **fresh(named)), tolerance)

    def gradients_agree(self, *arguments, tolerance: float = TOLERANCE, **named) -> None:
        """Raises Broken where the gradient of an argument that asks for one differs from the package's."""
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
        """The gradients of sum(output * fixed weights) with respect to every argument; None where there is none."""
        leaves = [a.detach().clone().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else copy.deepcopy(a)
                  for a in arguments]
        result = function(*[leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves], **fresh(named))
        if not isinstance(result, Tensor):
            raise Broken("a tensor", describe(result))
        wanted = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
        if not result.requires_grad:
            return [None] * len(arguments)
        weights = torch.linspace(-1.0, 2.0, result.numel(), dtype=result.dtype).reshape(result.shape)
        found = iter(torch.autograd.grad((result * weights).sum(), wanted, allow_unused=True))
        return [next(found) if isinstance(leaf, Tensor) and leaf.requires_grad else None for leaf in leaves]


def fresh(values):
    """Copies of arguments: tensors cloned (asking for gradients as before), models as they are."""
    if isinstance(values, dict):
        return {key: fresh(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values)(fresh(value) for value in values)
    if isinstance(values, Tensor):
        return values.detach().clone().requires_grad_(values.requires_grad)
    return values if isinstance(values, torch.nn.Module) or callable(values) else copy.deepcopy(values)


def named_exercise(answer: Callable, name: str | None = None) -> Exercise:
    """The exercise that a function answers, by its name; ValueError in one line if there is none."""
    import tutorials.exercises  # noqa: F401 -- here, because its files register themselves with this one
    name = name or getattr(answer, "__name__", str(answer))
    if name not in EXERCISES:
        import difflib
        near = difflib.get_close_matches(name, EXERCISES, n=3, cutoff=0.3) or sorted(EXERCISES)
        raise ValueError(f"check: there is no exercise {name}; nearest: {', '.join(near)}")
    return EXERCISES[name]


def examine(answer: Callable, name: str | None = None, seed: int = 0) -> Report:
    """What becomes of an answer: the first property that it breaks, or that it passes. Nothing is printed."""
    exercise = named_exercise(answer, name)
    called_package = False
    for rule in exercise.properties:
        trial = Trial(exercise, answer, seed, rule.name)
        try:
            rule.holds(trial)
        except NotImplementedError:
            return Report(exercise.name, "not done yet")
        except Changed as error:
            return Report(exercise.name, "broken", UNCHANGED, "work on a copy, or make a new tensor", trial.shown,
                          error.expected, error.found)
        except Broken as error:
            return Report(exercise.name, "broken", rule.name, rule.hint, trial.shown, error.expected, error.found)
        except (Exception, SystemExit) as error:
            first = (str(error).splitlines() or [""])[0][:200]
            return Report(exercise.name, "broken", rule.name, rule.hint, trial.shown,
                          found=f"it raised {type(error).__name__}: {first}")
        called_package |= trial.called_package
    return Report(exercise.name, "package" if called_package else "passed")


def check(answer: Callable, name: str | None = None) -> None:
    """Prints what becomes of an answer; never raises for a wrong one, so that a notebook runs on."""
    print(examine(answer, name))


@contextlib.contextmanager
def using(*answers: Callable):
    """While the block runs, the package computes with these functions instead of its own.

    ValueError for an exercise that stands for a few lines in the middle of a function.
    """
    undo = []
    try:
        for answer in answers:
            exercise = named_exercise(answer)
            if not exercise.replaces:
                raise ValueError(f"using: {exercise.name} is a part of {exercise.where()} and cannot be replaced alone")
            owner, name, original = find(exercise.place or exercise.lives)
            put = exercise.package_form(answer) if exercise.package_form else answer

            # A function that other files imported by name is replaced there too.
            owners = [owner] if not inspect.ismodule(owner) else [
                module for key, module in list(sys.modules.items())
                if key.split(".")[0] == "crab_mini" and vars(module).get(name) is original]
            for each in owners:
                mine = vars(each).get(name, undo)               # `undo` stands for "it had none of its own"
                undo.append((each, name, mine))
                put_there(each, name, put)
        yield
    finally:
        for each, name, mine in reversed(undo):
            if mine is undo:
                object.__delattr__(each, name)
            else:
                put_there(each, name, mine)


def put_there(owner: object, name: str, function: Callable) -> None:
    """Sets an attribute of a module, a class or a (frozen) object."""
    if isinstance(owner, type) or inspect.ismodule(owner):
        setattr(owner, name, function)
    else:
        object.__setattr__(owner, name, function)
