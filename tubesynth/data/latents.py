"""Encoded cases as samples for stage 2: latents in 16 bits, label map, vessel tokens and fields.

A case may be stored in several variants, each encoded from another augmentation of image and label
map; a sample index takes one of them.
"""

import numpy as np
import torch

from tubesynth.data.entry import Entry
from tubesynth.data.sampler import case_of_sample
from tubesynth.data.store import Store
from tubesynth.data.volumes import LATENTS
from tubesynth.runtime.errors import InputError
from tubesynth.volume.vessels import VesselTokens


class LatentDataset:
    """Encoded cases by sample index; keys[i]: the store's keys of case i, one per variant.

    A sample is dict(case str, sample_index int, latent float16 (C, x, y, z) before normalization,
    spacing float32 (3,) mm; of a labeled case label uint8 (X, Y, Z); and with vessel tokens: tokens
    {name: (N, ...)} and fields float16 (2, x, y, z) rendered from them).
    """

    def __init__(self, store: Store, case_ids: list[str], keys: list[list[str]], seed: int):
        self.store, self.case_ids, self.keys, self.seed = store, case_ids, keys, seed

    def __len__(self) -> int:
        """The number of cases, which is the number of samples of one epoch."""
        return len(self.keys)

    def view(self, sample_index: int) -> dict:
        """The sample of an index as views of the stored arrays."""
        case = case_of_sample(sample_index, len(self.keys), self.seed)
        random = np.random.default_rng([self.seed, sample_index, 1])
        variant = int(random.integers(len(self.keys[case])))
        return {**self.sample(case, variant), "sample_index": sample_index}

    def sample(self, case: int, variant: int = 0) -> dict:
        """One variant of a case as views."""
        entry = self._open(case, variant)
        arrays = entry.arrays()
        sample = {
            "case": self.case_ids[case],
            "latent": arrays["latent"],
            "spacing": np.array(entry.meta["spacing"], dtype=np.float32),
        }
        for name in ("label", "fields"):
            if name in arrays:
                sample[name] = arrays[name]
        if "tokens" in arrays:
            sample["tokens"] = vars(VesselTokens.from_array(arrays["tokens"]))
        return sample

    def moments(self) -> tuple[float, torch.Tensor, torch.Tensor]:
        """The number of cells, the sums (C,) and the sums of squares (C,) over all variants."""
        total = 0  # (3, C): cells, sums, sums of squares
        for case, keys in enumerate(self.keys):
            for variant in range(len(keys)):
                total = total + self._open(case, variant).arrays()["moments"]
        count, sums, squares = np.asarray(total)
        return float(count[0]), torch.from_numpy(sums.copy()), torch.from_numpy(squares.copy())

    def _open(self, case: int, variant: int) -> Entry:
        entry = self.store.checked(LATENTS, self.keys[case][variant])
        if entry is None:
            raise InputError(
                f"{self.store.root}: the latents of case {self.case_ids[case]} are missing or"
                " damaged; start the run again, it encodes all missing latents"
            )
        return entry
