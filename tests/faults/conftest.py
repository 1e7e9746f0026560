"""The good inputs, made once for all tests of this folder."""

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
    """{scene: (its writes, what it leaves behind)} of runs that are not killed."""
    found = {}
    for name, (_, prepare, result) in SCENES.items():
        place = folder / f"whole_{name}"
        prepare(place)
        place.mkdir(parents=True, exist_ok=True)
        (place / "work").mkdir(parents=True, exist_ok=True)
        outcome = start(name, place)
        assert outcome.steps and outcome.steps[0].status == 0, outcome
        found[name] = (place / "events").read_text().splitlines(), result(place)
    return found
