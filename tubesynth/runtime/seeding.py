"""Seeds from keys: (seed, rank, step), (seed, sample index) or (seed, case).

No generator state is saved: a run that resumes at step s has the random numbers of an uninterrupted
run at step s.
"""

import hashlib

import torch


def derive(*key: int | str) -> int:
    """A 63-bit seed from a key such as (seed, "noise", sample_index): equal keys, equal seeds."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(device: torch.device, *key: int | str) -> torch.Generator:
    """A torch generator on the device, seeded by the key."""
    return torch.Generator(device).manual_seed(derive(*key))
