"""The good inputs, made once for all tests of this folder."""

import functools
import os

import pytest
import torch

from crab_mini.evaluation import generate

from . import good
from .scenes import SCENES, start


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    """A folder for cases, beside the good inputs. What `good.make` changes in this process is given back."""
    before, threads, limit_of = os.getcwd(), torch.get_num_threads(), generate.limit_of
    root = tmp_path_factory.mktemp("faults")
    good.make(root / "good")
    yield root / "cases"
    os.chdir(before)
    torch.set_num_threads(threads)
    generate.limit_of = limit_of


@pytest.fixture(scope="package")
def whole(folder):
    """whole(scene) -> (its writes, what it leaves behind) of a run that is not killed; each runs once."""
    @functools.cache
    def run(name: str) -> tuple[list[str], list]:
        place, (_, prepare, result) = folder / f"whole_{name}", SCENES[name]
        prepare(place)
        outcome = start(name, place)
        assert outcome.steps and outcome.steps[0].status == 0, outcome
        return (place / "events").read_text().splitlines(), result(place)
    return run
