"""The nearest code of each vector, exactly, without the N x K matrix of distances."""

import math

import torch
from torch import Tensor

# Distances are held for this many (vector, code) pairs at a time: few enough to stay in the cache
# of a processor (4 MiB), on a GPU enough to fill it (64 MiB).
PAIRS_AT_A_TIME = {"cpu": 1 << 20, "cuda": 1 << 24}
BLOCK = 128  # codes


@torch.no_grad()
def nearest_code(vectors: Tensor, codebook: Tensor) -> Tensor:
    """(N, D) vectors, (K, D) codes -> (N,) index of the nearest code (Euclidean, first of equals).

    A minimum runs at the speed of the vector units where an argmin does not: the minimum of each
    block of codes is found first, and an argmin is taken only over the blocks and in the best one.
    """
    pairs = PAIRS_AT_A_TIME.get(vectors.device.type, 1 << 20)
    codes = len(codebook)
    blocks = math.ceil(codes / BLOCK)
    rows = max(1, pairs // (blocks * BLOCK))
    half_norm, transposed = codebook.square().sum(1) / 2, codebook.T.contiguous()
    distances = vectors.new_full((min(rows, len(vectors)), blocks * BLOCK), math.inf)
    indices = torch.empty(len(vectors), dtype=torch.long, device=vectors.device)
    for start in range(0, len(vectors), rows):
        some = vectors[start : start + rows]
        held = distances[: len(some)]
        # argmin |v - c|^2 = argmin |c|^2 / 2 - v.c; past the last code it stays infinite
        torch.addmm(half_norm, some, transposed, alpha=-1, out=held[:, :codes])
        by_block = held.view(len(some), blocks, BLOCK)
        block = by_block.amin(2).argmin(1)
        best = by_block.take_along_dim(block[:, None, None], 1)[:, 0]
        indices[start : start + rows] = block * BLOCK + best.argmin(1)
    return indices
