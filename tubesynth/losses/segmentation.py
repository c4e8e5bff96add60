"""Loss of the vessel segmenter."""

from torch import Tensor


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - soft Dice of the whole batch (Milletari et al. 2016); target in {0, 1}, one shape."""
    probability, target = logits.float().sigmoid(), target.float()
    overlap = 2 * (probability * target).sum()
    return 1 - (overlap + 1) / (probability.sum() + target.sum() + 1)
