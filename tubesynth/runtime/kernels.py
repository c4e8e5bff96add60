"""The kernels that a training may use on a GPU: the fastest ones, or deterministic ones."""

import os

import torch


def choose_kernels(device: torch.device, deterministic: bool) -> str:
    """Choose them for this process; returns what is chosen, for the log.

    Those of a CPU are deterministic. TF32 rounds the inputs of a product to 11 bits: enough for
    convolutions in 32 bits, too few for the code search and the distance bias, whose terms cancel.
    """
    if device.type != "cuda":
        return "deterministic"
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = True  # torch's default, stated in the log
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        # An operation without a deterministic kernel is named in a warning.
        torch.use_deterministic_algorithms(True, warn_only=True)
        return "deterministic (train.deterministic); convolutions in TF32"
    return "the fastest that cuDNN finds, not deterministic; convolutions in TF32"
