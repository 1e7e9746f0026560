"""The exercises' checks: what becomes of an answer, and an answer in the package's place.

An exercise is a decorated stub and the properties of a right answer (exercise.py, trial.py):

    @exercise("04", lives="crab_mini.model.attention:attend")   # where the package has the answer
    def attend(q, k, v):
        raise NotImplementedError

    @attend.requires("a query's weights sum to one", hint="softmax over the keys")
    def _(trial):
        trial.equal(trial.call(q, k, ones), ones)               # small inputs before large ones

What is unusual: there are no solutions here. An answer is compared with the package's own function,
or held to what must be true of any answer. Properties stand in an order in which the first broken
one names the mistake. `check` runs on fixed inputs, the grading command on inputs of its own seed.

    check(attend)                       "attend: not done yet", what is broken, or "attend: right"
    with using(attend): model(batch)    the model computes with the student's function
"""

import contextlib
import difflib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass

from .exercise import EXERCISES, Exercise, find
from .trial import Broken, Changed, Trial

UNCHANGED = "the inputs are left as they were"  # holds in every exercise, unless it says otherwise


@dataclass
class Report:
    """What became of one answer. state: passed, not done yet, broken, package (it calls the
    package's function)."""

    exercise: str
    state: str
    broken: str = ""  # the property that does not hold
    hint: str = ""
    shown: str = ""  # the input that shows it
    expected: str = ""
    found: str = ""

    def __str__(self) -> str:
        if self.state == "passed":
            return f"{self.exercise}: right"
        if self.state == "not done yet":
            return f"{self.exercise}: not done yet"
        if self.state == "package":
            return f"{self.exercise}: right, but it calls the package's own function"
        lines = [
            f"{self.exercise}: not right yet",
            f"  broken:   {self.broken}",
            f"  hint:     {self.hint}",
            f"  input:    {self.shown}",
        ]
        lines += [f"  expected: {self.expected}"] if self.expected else []
        return "\n".join([*lines, f"  found:    {self.found}"])


def named_exercise(answer: Callable, name: str | None = None) -> Exercise:
    """The exercise that a function answers, by its name; ValueError in one line if there is
    none."""
    import tutorials.exercises  # noqa: F401 -- here: its files need this one

    name = name or getattr(answer, "__name__", str(answer))
    if name not in EXERCISES:
        near = difflib.get_close_matches(name, EXERCISES, n=3, cutoff=0.3) or sorted(EXERCISES)
        raise ValueError(f"check: there is no exercise {name}; nearest: {', '.join(near)}")
    return EXERCISES[name]


def examine(answer: Callable, name: str | None = None, seed: int = 0) -> Report:
    """What becomes of an answer: the first property that it breaks, or that it passes. Nothing is
    printed."""
    exercise = named_exercise(answer, name)
    called_package = False
    for rule in exercise.properties:
        trial = Trial(exercise, answer, seed, rule.name)
        try:
            rule.holds(trial)
        except NotImplementedError:
            return Report(exercise.name, "not done yet")
        except Changed as error:
            broken = (UNCHANGED, "work on a copy, or make a new tensor")
            expected, found = error.expected, error.found
        except Broken as error:
            broken = (rule.name, rule.hint)
            expected, found = error.expected, error.found
        except (Exception, SystemExit) as error:
            first = (str(error).splitlines() or [""])[0][:200]
            broken = (rule.name, rule.hint)
            expected, found = "", f"it raised {type(error).__name__}: {first}"
        else:
            called_package |= trial.called_package
            continue
        return Report(exercise.name, "broken", *broken, trial.shown, expected, found)
    return Report(exercise.name, "package" if called_package else "passed")


def check(answer: Callable, name: str | None = None) -> None:
    """Prints what becomes of an answer; never raises for a wrong one, so that a notebook runs
    on."""
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
                raise ValueError(
                    f"using: {exercise.name} is a part of {exercise.where()} "
                    "and cannot be replaced alone"
                )
            owner, name, original = find(exercise.place or exercise.lives)
            put = exercise.package_form(answer) if exercise.package_form else answer

            # A function that other files imported by name is replaced there too.
            owners = (
                [owner]
                if not inspect.ismodule(owner)
                else [
                    module
                    for key, module in list(sys.modules.items())
                    if key.split(".")[0] == "crab_mini" and vars(module).get(name) is original
                ]
            )
            for each in owners:
                mine = vars(each).get(name, undo)  # `undo` stands for "it had none of its own"
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
