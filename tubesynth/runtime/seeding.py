"""Seeds that are drawn from what a random number is for: (seed, rank, step), (seed, draw), (seed,
case).

No generator's state has to be saved or passed on: a run that resumes at step s draws at step s what
a run that never stopped would have drawn.
"""

import hashlib

import torch


def derive(*key: int | str) -> int:
    """A 63-bit seed from a key such as (seed, "noise", draw): equal keys, equal seeds."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(device: torch.device, *key: int | str) -> torch.Generator:
    """A torch generator on the device, seeded by the key."""
    return torch.Generator(device).manual_seed(derive(*key))
