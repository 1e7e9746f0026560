"""What an exercise is: a stub, where the package has the answer, and the properties of a right one.

Registered under the stub's name by the decorator `exercise`; see check.py for how one is written.
"""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

EXERCISES: dict[str, "Exercise"] = {}


@dataclass
class Property:
    """Something that must hold of every right answer, and the hint for who breaks it.

    holds: called with a Trial (trial.py); raises Broken where it does not.
    """

    name: str
    hint: str
    holds: Callable[[object], None]


@dataclass
class Exercise:
    """One function to write.

    lives: "module:name" or "module:Class.method", where the package computes the same; replaces:
    whether `using` can put an answer there. shortcuts: other functions of the package that would be
    the answer."""

    stub: Callable
    notebook: str
    points: int
    lives: str
    shortcuts: tuple[str, ...] = ()
    replaces: bool = True
    place: str = ""  # where `using` puts an answer, if not where `lives` says
    properties: list[Property] = field(default_factory=list)
    package_answer: Callable | None = (
        None  # (*the stub's arguments), where the package's arguments differ
    )
    package_form: Callable | None = (
        None  # answer -> what is put into the package, where they differ
    )

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
        return {
            code
            for f in functions
            if (code := getattr(inspect.unwrap(f), "__code__", None)) is not None
        }


def exercise(
    notebook: str,
    lives: str,
    points: int = 1,
    shortcuts: tuple[str, ...] = (),
    replaces: bool = True,
    place: str = "",
) -> Callable[[Callable], Exercise]:
    """Decorator of a stub: registers the exercise under the stub's name."""

    def register(stub: Callable) -> Exercise:
        if stub.__name__ in EXERCISES:
            raise ValueError(f"exercise {stub.__name__}: there is one of this name already")
        EXERCISES[stub.__name__] = Exercise(
            stub, notebook, points, lives, shortcuts, replaces, place
        )
        return EXERCISES[stub.__name__]

    return register


def find(lives: str) -> tuple[object, str, Callable]:
    """ "module:Class.method" -> (the class or module that holds it, its name there, the
    function)."""
    module, _, dotted = lives.partition(":")
    *owners, name = dotted.split(".")
    owner = importlib.import_module(module)
    for part in owners:
        owner = owner[part] if isinstance(owner, dict) else getattr(owner, part)
    return owner, name, getattr(owner, name)
