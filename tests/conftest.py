"""Every test begins alike, whatever ran before it: with a seed of its own, and with the CPU's usual arithmetic."""

import random
from zlib import crc32

import numpy as np
import pytest
import torch


def seed_all(name: str) -> None:
    """Seeds all global generators with a number that follows from a name."""
    number = crc32(name.encode())
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


@pytest.fixture(autouse=True)
def seed_of_the_test(request):
    """Before the fixtures of one test, and before the test."""
    seed_all(request.node.name)
    torch.set_flush_denormal(False)         # training turns it on for the whole process


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef):
    """Before a fixture that several tests share: it is made at its first use, whenever that is."""
    if fixturedef.scope != "function":
        seed_all(fixturedef.argname)
