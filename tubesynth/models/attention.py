"""Self-attention over the voxels of a feature map (Vaswani et al. 2017, arXiv 1706.03762).

Fused attention kernels take at most 256 channels a head; heads of 32 to 64 are usual.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from tubesynth.models.blocks import PUBLISHED_GROUPS, group_norm, zero_init


class SelfAttention(nn.Module):
    """(B, C, X, ...) -> the same shape. The residual branch is zero-initialized.

    published: 32 groups whatever the width, and no zero initialization.
    """

    def __init__(self, channels: int, head_channels: int, published: bool = False):
        super().__init__()
        assert channels % head_channels == 0
        self.num_heads = channels // head_channels
        self.norm = group_norm(channels, groups=PUBLISHED_GROUPS if published else None)
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.to_out = nn.Linear(channels, channels)
        if not published:
            zero_init(self.to_out)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, N, C)
        qkv = self.to_qkv(tokens).unflatten(2, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, C / heads)
        attended = F.scaled_dot_product_attention(query, key, value)
        attended = self.to_out(attended.transpose(1, 2).flatten(2))
        return x + attended.transpose(1, 2).reshape(batch, channels, *x.shape[2:])
