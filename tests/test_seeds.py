"""What a test draws does not depend on the tests before it."""

from zlib import crc32

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def shared():
    return torch.initial_seed(), np.random.rand()


@pytest.mark.parametrize("more", [0, 5])
def test_a_test_begins_at_its_own_seed(request, more):
    seed = crc32(request.node.name.encode())
    drawn = torch.rand(3), np.random.rand(3 + more)[:3]
    assert torch.equal(drawn[0], torch.rand(3, generator=torch.Generator().manual_seed(seed)))
    assert np.array_equal(drawn[1], np.random.RandomState(seed).rand(3))


def test_a_shared_fixture_has_a_seed_of_its_own(shared, request):
    assert shared == (crc32(b"shared"), np.random.RandomState(crc32(b"shared")).rand())
    assert torch.initial_seed() == crc32(request.node.name.encode())        # and the test still has its own
