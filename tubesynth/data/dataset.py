"""Draws to samples: the same draw gives the same sample, whoever asks and in any order.

A sample is dict(case str, draw int, image int16 HU (1, X, Y, Z), label uint8 (X, Y, Z), spacing
float32 (3,) mm, intensity float32 (2,) scale and shift, and tokens {name: (N, ...)} when asked
for). The window, one-hot labels, intensities and dropout happen on the device: what travels is as
small as what the disk holds. Two-dimensional data loses its Z axis.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from tubesynth.data.augment import Augmentation, draw_change, move_array, move_tokens
from tubesynth.data.sampler import case_of_draw
from tubesynth.data.store import Store, will_need
from tubesynth.data.volumes import (
    VOLUMES,
    Preprocessing,
    TokenSource,
    ensure_tokens,
    ensure_volume,
    lay_on_grid,
    read_case,
    volume_key,
)
from tubesynth.runtime.errors import InputError
from tubesynth.volume.cases import Case
from tubesynth.volume.grid import spacing_of

MODES = ("default", "cache", "persistent")  # prepared on the fly, once in memory, once on disk


class VolumeDataset(torch.utils.data.Dataset):
    """Cases as samples, keyed by the draw number.

    store is needed for mode "persistent" only. crop (voxels) and augmentation are drawn from
    (seed, draw); without them a draw is its whole case. dim=2 drops the Z axis.
    """

    def __init__(
        self,
        cases: list[Case],
        preprocessing: Preprocessing,
        store: Store | None = None,
        mode: str = "default",
        seed: int = 0,
        crop=None,
        augmentation: Augmentation | None = None,
        tokens: TokenSource | None = None,
        dim: int = 3,
    ):
        assert mode in MODES, f"{mode} is none of {MODES}"
        assert mode != "persistent" or store is not None, "mode persistent keeps data in a store"
        self.cases, self.preprocessing, self.mode = list(cases), preprocessing, mode
        self.store = store if mode == "persistent" else None
        self.seed, self.dim = seed, dim
        self.augmentation, self.tokens = augmentation or Augmentation(), tokens
        self.crop = None if crop is None else (*crop, *(1,) * (3 - len(crop)))
        whole = preprocessing.resolution
        assert crop is None or all(c <= n for c, n in zip(self.crop, whole, strict=True))
        if not self.cases:
            raise InputError("a data set without cases; check data.root")
        self.keys = None
        if self.store:
            with ThreadPoolExecutor(8) as pool:  # hashing and a disk's latency, not Python
                self.keys = list(
                    pool.map(lambda case: volume_key(self.store, case, preprocessing), self.cases)
                )
        self.memory = None
        if mode == "cache":
            with ThreadPoolExecutor() as pool:
                self.memory = list(pool.map(self._prepare, range(len(self.cases))))

    def __len__(self) -> int:
        """Cases: the draws of one epoch."""
        return len(self.cases)

    def __getitem__(self, draw: int) -> dict:
        """The sample of a draw, on its own (contiguous) memory."""
        return {name: _own(value) for name, value in self.view(draw).items()}

    def view(self, draw: int) -> dict:
        """The sample of a draw as views of the stored arrays, not copied yet."""
        index = case_of_draw(draw, len(self.cases), self.seed)
        return {**self.sample(index, np.random.default_rng([self.seed, draw])), "draw": draw}

    def sample(self, index: int, rng=None) -> dict:
        """A case as views, moved as the generator says; None leaves it as it is, whole."""
        arrays, tokens, affine = self.load(index)
        shape, spacing = arrays["image"].shape, spacing_of(affine)
        if rng is None:
            change = draw_change(np.random.default_rng(0), shape, spacing)
        else:
            change = draw_change(rng, shape, spacing, self.crop, self.augmentation)
        if change.pose.size != shape:
            for array in arrays.values():
                will_need(array, change.pose.start, change.pose.size)
        sample = {
            "case": self.cases[index].id,
            "image": self._flat(move_array(arrays["image"], change.pose))[None],
            "spacing": spacing.astype(np.float32),
            "intensity": np.array([change.scale, change.shift], dtype=np.float32),
        }
        if "label" in arrays:
            sample["label"] = self._flat(move_array(arrays["label"], change.pose))
        if tokens is not None:
            sample["tokens"] = move_tokens(tokens, change.pose, shape, spacing)
        return sample

    def load(self, index: int):
        """(arrays, tokens or None, affine) of a case as they are stored."""
        if self.memory is not None:
            return self.memory[index]
        if self.store is None:
            return self._prepare(index)
        case, key = self.cases[index], self.keys[index]
        entry = self.store.open(VOLUMES, key)
        if entry is None:  # not built yet, or damaged since: made again
            entry, _ = ensure_volume(self.store, case, self.preprocessing, key)
        tokens = None
        if self.tokens is not None and case.label is not None:
            tokens = ensure_tokens(self.store, case, entry, self.tokens)[0].arrays()
        return entry.arrays(), tokens, np.array(entry.meta["affine"])

    def _prepare(self, index: int):
        image, label = read_case(self.cases[index], self.preprocessing)
        arrays, affine = lay_on_grid(image, label, self.preprocessing)
        tokens = None
        if self.tokens is not None and label is not None:
            tokens = self.tokens.extract(label, arrays["image"].shape, affine)
        return arrays, tokens, affine

    def _flat(self, array: np.ndarray) -> np.ndarray:
        return array[..., 0] if self.dim == 2 else array


def collate(samples: list[dict], pin_memory: bool = False) -> dict:
    """Samples of one shape -> a batch; tokens are padded to the longest, with a mask (B, N).

    Voxels are copied once, from the views to where the batch stays (pinned for a GPU).
    """
    batch = {}
    for name, first in samples[0].items():
        values = [sample[name] for sample in samples]
        if name == "tokens":
            batch[name] = pad_tokens(values)
        elif isinstance(first, str):
            batch[name] = values
        elif isinstance(first, np.ndarray):
            dtype = torch.from_numpy(np.empty(0, first.dtype)).dtype
            out = torch.empty((len(values), *first.shape), dtype=dtype, pin_memory=pin_memory)
            for row, value in zip(out.numpy(), values, strict=True):
                np.copyto(row, value)
            batch[name] = out
        else:
            batch[name] = torch.tensor(values)
    return batch


def pad_tokens(tokens: list[dict]) -> dict:
    """[{name: (N_i, ...)}] -> {name: (B, N, ...)} zero-padded; mask (B, N): True is a token."""
    counts = [len(one["position_mm"]) for one in tokens]
    longest = max(max(counts), 1)  # attention over no key at all is undefined
    padded = {}
    for name, first in tokens[0].items():
        values = np.zeros((len(tokens), longest, *first.shape[1:]), dtype=first.dtype)
        for row, one in zip(values, tokens, strict=True):
            row[: len(one[name])] = one[name]
        padded[name] = torch.from_numpy(values)
    padded["mask"] = torch.arange(longest) < torch.tensor(counts)[:, None]
    return padded


def _own(value):
    if isinstance(value, dict):
        return {name: _own(one) for name, one in value.items()}
    return torch.from_numpy(np.array(value, order="C")) if isinstance(value, np.ndarray) else value
