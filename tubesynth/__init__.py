"""Synthetic CT that obeys a given anatomy, down to the coronary arteries."""

import os

# torch's large CPU tensors on huge pages, as NumPy's are: fresh memory is filled four times faster.
# torch reads it at its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
