"""A hash of weights: it changes when any parameter, name, shape or dtype does.

The folder of cached features carries the hash of the encoders in its name, and the checkpoint of a
stage the hash of the published weights below it: neither is used again with other weights.
    weights_key(crab.vision.state_dict(), "bf16")
"""

import hashlib

import torch
from torch import Tensor

DIGEST = 16             # bytes of a hash


def weights_key(state: dict[str, Tensor], *facts) -> str:
    """State dict and whatever else decides what is computed with it -> 32 hex digits.

    facts: such as the dtype of the arithmetic, or which layers are read.
    """
    made = hashlib.blake2b(repr(facts).encode(), digest_size=DIGEST)
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        made.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        if value.numel():
            # The tensor's own memory is hashed, without a copy: a published LLM has 27 GB.
            made.update(value.view(-1).view(torch.uint8).numpy())
    return made.hexdigest()
