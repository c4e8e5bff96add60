"""The autocast type of each mixed precision of train.precision; 32 has none."""

import torch

AUTOCAST_DTYPE = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
