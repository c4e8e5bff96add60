"""Exact nearest-code search without the N x K matrix of distances."""

import math

import torch
from torch import Tensor

# Number of (vector, code) pairs whose distances are held at a time: on a CPU few enough for its
# cache (4 MiB), on a GPU enough to occupy it (64 MiB).
PAIRS_AT_A_TIME = {"cpu": 1 << 20, "cuda": 1 << 24}
BLOCK = 128  # codes


@torch.no_grad()
def nearest_code(vectors: Tensor, codebook: Tensor) -> Tensor:
    """(N, D) vectors, (K, D) codes -> (N,) index of the nearest code (Euclidean, first of equals).

    A minimum is vectorized where an argmin is not. So the minimum of each block of codes comes
    first, then an argmin over the blocks, then an argmin within the best block.
    """
    pairs = PAIRS_AT_A_TIME.get(vectors.device.type, 1 << 20)
    codes = len(codebook)
    blocks = math.ceil(codes / BLOCK)
    rows = max(1, pairs // (blocks * BLOCK))
    half_norm, transposed = codebook.square().sum(1) / 2, codebook.T.contiguous()
    distances = vectors.new_full((min(rows, len(vectors)), blocks * BLOCK), math.inf)
    indices = torch.empty(len(vectors), dtype=torch.long, device=vectors.device)
    for start in range(0, len(vectors), rows):
        chunk = vectors[start : start + rows]  # (R, D)
        chunk_distances = distances[: len(chunk)]  # (R, blocks * BLOCK)
        # argmin |v - c|^2 = argmin |c|^2 / 2 - v.c; columns beyond the last code stay infinite.
        torch.addmm(half_norm, chunk, transposed, alpha=-1, out=chunk_distances[:, :codes])
        by_block = chunk_distances.view(len(chunk), blocks, BLOCK)
        block = by_block.amin(2).argmin(1)
        best = by_block.take_along_dim(block[:, None, None], 1)[:, 0]
        indices[start : start + rows] = block * BLOCK + best.argmin(1)
    return indices
