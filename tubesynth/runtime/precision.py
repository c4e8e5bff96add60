"""What train.precision and --precision mean for autocast."""

import torch

AUTOCAST_DTYPE = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
