"""Cases as training samples by global sample index, and samples as batches.

A sample is dict(case str, sample_index int, image int16 HU (1, X, Y, Z), label uint8 (X, Y, Z),
spacing float32 (3,) mm, intensity float32 (2,) scale and shift, and with a token source tokens
{name: (N, ...)} and, on demand, image_fields float32 (2, X, Y, Z) rendered from them). The HU
window, intensity changes, one-hot labels and condition dropout are applied on the device, so a
batch is as small as the stored arrays. Samples of two-dimensional data have no Z axis.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from tubesynth.data.augment import (
    Augmentation,
    Pose,
    Transform,
    pose_array,
    pose_axes,
    pose_tokens,
    random_transform,
)
from tubesynth.data.entry import will_need
from tubesynth.data.pool import each_in_threads
from tubesynth.data.preprocessing import Preprocessing, preprocess_case
from tubesynth.data.sampler import case_of_sample
from tubesynth.data.store import Store
from tubesynth.data.volumes import (
    VOLUMES,
    CaseFiles,
    TokenSource,
    ensure_tokens,
    ensure_volume,
    volume_key,
)
from tubesynth.runtime.errors import InputError
from tubesynth.volume.cases import Case
from tubesynth.volume.grid import spacing_of
from tubesynth.volume.rasterize import condition_fields
from tubesynth.volume.vessels import VesselTokens

# A whole case: voxels {"image", "label"}, tokens {name: (N, ...)} or None, affine (4, 4).
StoredCase = tuple[dict[str, np.ndarray], dict[str, np.ndarray] | None, np.ndarray]
MODES = ("default", "cache", "persistent")  # resample at each use, once to memory, or once to disk


class VolumeDataset(torch.utils.data.Dataset):
    """Cases as samples; one sample index always gives the same sample, in any process and order.

    store: needed for mode "persistent" only. crop (voxels) and augmentation: chosen at random by
    (seed, sample_index); without them a sample is its whole case. dim: 2 removes the Z axis.
    """

    def __init__(
        self,
        cases: list[Case],
        preprocessing: Preprocessing,
        store: Store | None = None,
        mode: str = "default",
        seed: int = 0,
        crop: Sequence[int] | None = None,
        augmentation: Augmentation | None = None,
        tokens: TokenSource | None = None,
        dim: int = 3,
        image_fields: bool = True,
    ):
        assert mode in MODES, f"{mode} is none of {MODES}"
        self.cases, self.preprocessing, self.mode = list(cases), preprocessing, mode
        self.seed, self.dim, self.image_fields = seed, dim, image_fields
        self.augmentation, self.tokens = augmentation or Augmentation(), tokens
        self.crop = None if crop is None else (*crop, *(1,) * (3 - len(crop)))
        resolution = preprocessing.resolution
        assert self.crop is None or all(c <= n for c, n in zip(self.crop, resolution, strict=True))
        if not self.cases:
            raise InputError("data.root: the data set has no cases; check the folder")
        spacing_indices = range(preprocessing.num_spacings)
        self.store, self.keys = None, []  # of mode persistent; keys by case and spacing
        if mode == "persistent":
            assert store is not None, "mode persistent needs a store"
            self.store = store

            def keys_of(case: Case) -> list[str]:
                return [volume_key(store, case, preprocessing, index) for index in spacing_indices]

            self.keys = each_in_threads(keys_of, self.cases)
        self.loaded_cases: list[list[StoredCase]] | None = None
        if mode == "cache":

            def load(case: Case) -> list[StoredCase]:
                return [self._resample(case, index) for index in spacing_indices]

            with ThreadPoolExecutor() as pool:
                self.loaded_cases = list(pool.map(load, self.cases))

    def __len__(self) -> int:
        """The number of cases, which is the number of samples of one epoch."""
        return len(self.cases)

    def __getitem__(self, sample_index: int) -> dict:
        """The sample of an index as contiguous tensors, which share no memory with the store."""
        return {name: _to_tensor(value) for name, value in self.view(sample_index).items()}

    def view(self, sample_index: int) -> dict:
        """The sample of an index as views of the stored arrays, not copied yet."""
        case = case_of_sample(sample_index, len(self.cases), self.seed)
        rng = np.random.default_rng([self.seed, sample_index])
        random = np.random.default_rng([self.seed, sample_index, 2])  # rng's numbers stay the same
        spacing_index = int(random.integers(self.preprocessing.num_spacings))
        return {**self.sample(case, rng, spacing_index), "sample_index": sample_index}

    def sample(
        self, case: int, rng: np.random.Generator | None = None, spacing_index: int = 0
    ) -> dict:
        """A case as views, cropped and augmented at random; unchanged without rng.

        spacing_index: the number of the spacing, where a case has several.
        """
        arrays, tokens, affine = self.load(case, spacing_index)
        shape, spacing = arrays["image"].shape, spacing_of(affine)
        if rng is None:
            transform = Transform(Pose((0, 0, 0), shape))
        else:
            transform = random_transform(rng, shape, spacing, self.crop, self.augmentation)
        pose = transform.pose
        if pose.size != shape:
            for array in arrays.values():
                will_need(array, pose.start, pose.size)
        posed_spacing = pose_axes(spacing, pose)
        sample = {
            "case": self.cases[case].id,
            "image": self._without_flat_axis(pose_array(arrays["image"], pose))[None],
            "spacing": posed_spacing.astype(np.float32),
            "intensity": np.array([transform.scale, transform.shift], dtype=np.float32),
        }
        if "label" in arrays:
            sample["label"] = self._without_flat_axis(pose_array(arrays["label"], pose))
        if tokens is not None:
            sample["tokens"] = pose_tokens(tokens, pose, shape, spacing)
        if tokens is not None and self.image_fields:
            vessels = VesselTokens(**sample["tokens"])
            size = tuple(pose_axes(pose.size, pose))
            fields = condition_fields(vessels, size, posed_spacing, factor=1)
            sample["image_fields"] = self._without_flat_axis(fields)
        return sample

    def load(self, case: int, spacing_index: int = 0) -> StoredCase:
        """A whole case: from memory, from the store, or resampled."""
        if self.loaded_cases is not None:
            return self.loaded_cases[case][spacing_index]
        if self.store is None:
            return self._resample(self.cases[case], spacing_index)
        source, key = self.cases[case], self.keys[case][spacing_index]
        entry = self.store.checked(VOLUMES, key)
        if entry is None:  # not built yet, or damaged since it was built
            entry, _ = ensure_volume(self.store, source, self.preprocessing, key, spacing_index)
        tokens = None
        if self.tokens is not None and source.label is not None:
            tokens = ensure_tokens(self.store, source, entry, self.tokens)[0].arrays()
        return entry.arrays(), tokens, np.array(entry.meta["affine"])

    def _resample(self, case: Case, spacing_index: int) -> StoredCase:
        preprocessing = self.preprocessing.with_spacing(case.id, spacing_index)
        files = CaseFiles(case)
        arrays, affine = preprocess_case(*files.read(preprocessing), preprocessing)
        tokens = None
        if self.tokens is not None and case.label is not None:
            tokens = vars(files.tokens(self.tokens, arrays["image"].shape, affine))
        return arrays, tokens, affine

    def _without_flat_axis(self, array: np.ndarray) -> np.ndarray:
        return array[..., 0] if self.dim == 2 else array


def collate(samples: list[dict], pin_memory: bool = False) -> dict:
    """Samples of one shape -> a batch; tokens are padded to the longest list, with a mask (B, N).

    Voxels are copied once, from the views into the batch (in pinned memory for a GPU).
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
            stacked = torch.empty((len(values), *first.shape), dtype=dtype, pin_memory=pin_memory)
            for row, value in zip(stacked.numpy(), values, strict=True):
                np.copyto(row, value)
            batch[name] = stacked
        else:
            batch[name] = torch.tensor(values)
    return batch


def pad_tokens(tokens: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """[{name: (N_i, ...)}] -> zero-padded {name: (B, N, ...)}, and mask (B, N), True for tokens."""
    counts = [len(case["position_mm"]) for case in tokens]
    longest = max(max(counts), 1)  # attention needs at least one key
    padded = {}
    for name, first in tokens[0].items():
        values = np.zeros((len(tokens), longest, *first.shape[1:]), dtype=first.dtype)
        for row, case in zip(values, tokens, strict=True):
            row[: len(case[name])] = case[name]
        padded[name] = torch.from_numpy(values)
    padded["mask"] = torch.arange(longest) < torch.tensor(counts)[:, None]
    return padded


def _to_tensor(value):
    """An array, or each array of a dictionary, copied to a contiguous tensor."""
    if isinstance(value, dict):
        return {name: _to_tensor(entry) for name, entry in value.items()}
    return torch.from_numpy(np.array(value, order="C")) if isinstance(value, np.ndarray) else value
