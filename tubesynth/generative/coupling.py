"""Which noise goes with which case: the assignment of least squared distance within a batch.

Tong et al. 2024 (arXiv 2302.00482), minibatch optimal transport: paths cross less, so a trained
flow is straighter and takes fewer steps to solve. The noise of a batch is only permuted, so each
case still meets white noise. Two limits: the gain grows with the batch, and each process couples
its own micro-batch, so runs on other numbers of processes differ; and what a condition says of a
case it then says of its noise as well, which a sampler's noise does not know (Cheng and Schwing
2025, arXiv 2503.10636). Independent pairs are the default.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@torch.no_grad()
def couple(noise: Tensor, data: Tensor) -> Tensor:
    """Noise and data (B, C, ...) -> the noise in the order of the data it is assigned to.

    The assignment is made on the CPU: one sync point a batch.
    """
    # Squared distances without the norms, which sum to the same in every assignment.
    cost = -(data.flatten(1).double() @ noise.flatten(1).double().T)
    _, columns = linear_sum_assignment(cost.cpu().numpy())
    return noise[torch.from_numpy(columns).to(noise.device)]
