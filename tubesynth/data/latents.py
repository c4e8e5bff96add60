"""Encoded cases as samples: latents in 16 bits with the label map they belong to, keyed by the draw
number.

A case may be stored in several variants, each encoded from another augmentation of image and label;
a draw takes one of them. A sample is dict(case, draw, latent float16 (C, x, y, z) as the encoder
gave it, label uint8 (X, Y, Z), spacing float32 (3,) mm, and where vessel tokens were extracted
these by name, and drawn as fields float16 (2, x, y, z)).
"""

import numpy as np
import torch

from tubesynth.data.sampler import case_of_draw
from tubesynth.data.store import Entry, Store
from tubesynth.data.volumes import LATENTS
from tubesynth.runtime.errors import InputError
from tubesynth.volume.vessels import VesselTokens


class LatentDataset:
    """keys[i]: the store's keys of case i, one a variant; all of them are built."""

    def __init__(self, store: Store, case_ids: list[str], keys: list[list[str]], seed: int):
        self.store, self.case_ids, self.keys, self.seed = store, case_ids, keys, seed

    def __len__(self) -> int:
        """Cases: the draws of one epoch."""
        return len(self.keys)

    def view(self, draw: int) -> dict:
        """The sample of a draw as views of the stored arrays."""
        index = case_of_draw(draw, len(self.keys), self.seed)
        random = np.random.default_rng([self.seed, draw, 1])
        variant = int(random.integers(len(self.keys[index])))
        return {**self.sample(index, variant), "draw": draw}

    def sample(self, index: int, variant: int = 0) -> dict:
        """One variant of a case as views."""
        entry = self._open(index, variant)
        arrays = entry.arrays()
        sample = {
            "case": self.case_ids[index],
            "latent": arrays["latent"],
            "label": arrays["label"],
            "spacing": np.array(entry.meta["spacing"], dtype=np.float32),
        }
        if "fields" in arrays:
            sample["fields"] = arrays["fields"]
        if "tokens" in arrays:
            sample["tokens"] = vars(VesselTokens.from_array(arrays["tokens"]))
        return sample

    def moments(self) -> tuple[float, torch.Tensor, torch.Tensor]:
        """Cells, and per channel (C,) the sum and the sum of squares over every stored variant."""
        total = 0
        for index, keys in enumerate(self.keys):
            for variant in range(len(keys)):
                total = total + self._open(index, variant).array("moments")
        count, sums, squares = total
        return float(count[0]), torch.from_numpy(sums.copy()), torch.from_numpy(squares.copy())

    def _open(self, index: int, variant: int) -> Entry:
        entry = self.store.open(LATENTS, self.keys[index][variant])
        if entry is None:
            raise InputError(
                f"{self.store.root}: the latents of case {self.case_ids[index]} have gone or are"
                " damaged: start the run again, it encodes what is missing"
            )
        return entry
