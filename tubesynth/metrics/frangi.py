"""How much a CT looks like bright tubes: multi-scale vesselness of Frangi et al. 1998.

Eigenvalues of the Hessian at scales in mm (doi:10.1007/BFb0056195, equations 13 to 15), with
derivatives taken in mm, so anisotropic voxels do not matter. The response to structure is measured
against a fixed STRUCTURE_HU and not against the image's own maximum, as the numbers of a real CT, a
reconstruction and a synthesis must be comparable. Arrays are (X, Y, Z) in HU.
"""

import itertools
import math

import numpy as np
import torch

from tubesynth.metrics.dilation import within

ALPHA = BETA = 0.5
# A tube of contrast A and radius r gives a Hessian of norm 0.52 A at sigma = r / sqrt(2); half of
# that of a faint lumen (A = 300 HU over fat) is taken as the turning point.
STRUCTURE_HU = 80.0
RADII_MM = (0.8, 1.4, 2.4)  # coronaries, from the tips to the left main stem
TILE = 48  # voxels
SHELL_MM = 3.0


def vesselness(hu, spacing, radii_mm=RADII_MM, where=None) -> np.ndarray:
    """float32 in [0, 1]: the largest response over scales, 0 where nothing is tubular.

    (X, Y, Z), or with a bool mask `where` (X, Y, Z) only its N voxels, in NumPy's order: tiles
    without such voxels are skipped.
    """
    image = torch.from_numpy(np.array(hu, dtype=np.float32))
    chosen = torch.ones(image.shape, dtype=torch.bool)
    if where is not None:
        chosen = torch.from_numpy(np.ascontiguousarray(where, dtype=bool))
    best = torch.zeros(image.shape)
    # Below 0.6 voxels a sampled Gaussian is no longer one, and it must be round in mm.
    least = 0.6 * float(max(spacing))
    scales = [_filters(image.shape, spacing, max(r / math.sqrt(2), least)) for r in radii_mm]
    for tile in _tiles(image.shape):
        here = chosen[tile].reshape(-1).nonzero()[:, 0]
        if not len(here):
            continue
        values = torch.zeros(best[tile].shape)
        for filters in scales:
            hessian = [part.reshape(-1)[here] for part in _hessian(image, filters, tile)]
            values.view(-1)[here] = torch.maximum(values.view(-1)[here], _response(hessian))
        best[tile] = values
    return (best if where is None else best[chosen]).numpy()


def shell_of(mask, spacing, radii_mm=RADII_MM):
    """A box around the vessels with room for the filters, and in it the voxels of the shell.

    The shell lies from 1 voxel to SHELL_MM further away; (None, None) without vessels.
    """
    spacing = np.asarray(spacing, dtype=float)
    found = np.argwhere(mask)
    if not len(found):
        return None, None
    margin = np.ceil((SHELL_MM + 3 * max(radii_mm)) / spacing).astype(int) + 1
    low = np.maximum(found.min(0) - margin, 0)
    box = tuple(slice(a, b) for a, b in zip(low, found.max(0) + margin + 1, strict=True))
    near = within(mask[box], spacing, spacing.max())
    return box, within(mask[box], spacing, spacing.max() + SHELL_MM) & ~near


def against_shell(vessel, around) -> dict[str, float]:
    """vesselness and vesselness_shell: means; vesselness_contrast: their difference;
    vesselness_auc: the share of pairs of a vessel and a shell voxel in which the vessel's is larger
    (0.5: it does not stand out).
    """
    scores = {"vesselness": float(vessel.mean())}
    if len(around):
        ordered = np.sort(around)
        below = sum(np.searchsorted(ordered, vessel, side) for side in ("left", "right")) / 2
        scores["vesselness_shell"] = float(around.mean())
        scores["vesselness_contrast"] = scores["vesselness"] - scores["vesselness_shell"]
        scores["vesselness_auc"] = float(below.mean() / len(around))
    return scores


def _tiles(shape):
    """Blocks of at most TILE voxels a side: all six fields of one stay in the processor's cache."""
    starts = [range(0, n, TILE) for n in shape]
    for corner in itertools.product(*starts):
        yield tuple(slice(i, min(i + TILE, n)) for i, n in zip(corner, shape, strict=True))


def _filters(shape, spacing, sigma) -> list[list[torch.Tensor]]:
    """For each axis, Gaussian and its first and second derivative as banded matrices."""
    return [
        [_gaussian_matrix(n, float(s), sigma, order) for order in (0, 1, 2)]
        for n, s in zip(shape, spacing, strict=True)
    ]


def _hessian(image, filters, tile) -> list[torch.Tensor]:
    """xx, yy, zz, xy, xz, yz second derivatives times sigma^2 (all scales answer alike) of a tile.

    Banded matrices on the tile and its surroundings: on a CPU far faster than convolutions.
    """
    bands, source = [], []
    for axis, rows in enumerate(tile):
        used = filters[axis][0][rows].any(0) | filters[axis][2][rows].any(0)
        first, last = int(used.int().argmax()), len(used) - int(used.flip(0).int().argmax())
        bands.append([matrix[rows, first:last] for matrix in filters[axis]])
        source.append(slice(first, last))
    part = image[tuple(source)]
    along_x = [(m @ part.reshape(len(part), -1)).view(len(m), *part.shape[1:]) for m in bands[0]]
    return [
        (bands[1][y] @ along_x[x]) @ bands[2][z].T
        for x, y, z in ((2, 0, 0), (0, 2, 0), (0, 0, 2), (1, 1, 0), (1, 0, 1), (0, 1, 1))
    ]


def _gaussian_matrix(n, spacing_mm, sigma_mm, order) -> torch.Tensor:
    """(n, n): Gaussian or its derivative times sigma^order as a matrix; the edge voxel goes on."""
    reach = int(math.ceil(4 * sigma_mm / spacing_mm))
    u = torch.arange(-reach, reach + 1, dtype=torch.float64) * spacing_mm / sigma_mm
    gauss = torch.exp(-0.5 * u.square())
    gauss /= gauss.sum()
    kernel = (gauss, u * gauss, (u.square() - 1) * gauss)[order]
    if order == 1:
        kernel = kernel / (kernel * u).sum()  # exact on a ramp
    if order == 2:
        kernel = kernel - kernel.mean()  # 0 on a constant
        kernel = kernel * 2 / (kernel * u.square()).sum()  # exact on a parabola
    matrix = torch.zeros(n, n, dtype=torch.float64)
    rows = torch.arange(n)
    for offset, weight in zip(range(-reach, reach + 1), kernel, strict=True):
        columns = (rows + offset).clamp(0, n - 1)
        matrix.index_put_((rows, columns), weight.expand(n), accumulate=True)
    return matrix.float()


def _response(hessian) -> torch.Tensor:
    """Frangi's equation 15 for bright tubes; six (N,) -> (N,)."""
    first, second, third = _eigenvalues(*hessian)
    # second and third are the two most negative; along the tube `first` is near 0.
    squares = first.square() + second.square() + third.square()
    plate = (second / third).square()
    blob = first.square() / (second * third)
    value = (1 - torch.exp(-plate / (2 * ALPHA**2))) * torch.exp(-blob / (2 * BETA**2))
    value *= 1 - torch.exp(-squares / (2 * STRUCTURE_HU**2))
    tubular = (second < 0) & (first.abs() <= second.abs())
    return torch.where(tubular, value, 0.0)


def _eigenvalues(xx, yy, zz, xy, xz, yz) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Eigenvalues of symmetric 3 x 3 matrices, largest first (Smith 1961, closed form)."""
    mean = (xx + yy + zz) / 3
    xx, yy, zz = xx - mean, yy - mean, zz - mean
    off = xy.square() + xz.square() + yz.square()
    spread = ((xx.square() + yy.square() + zz.square() + 2 * off) / 6).sqrt()
    determinant = (
        xx * yy * zz + 2 * xy * xz * yz - xx * yz.square() - yy * xz.square() - zz * xy.square()
    )
    cosine = (determinant / (2 * spread.pow(3).clamp_min(1e-20))).clamp(-1, 1)
    angle = torch.acos(cosine) / 3
    largest = mean + 2 * spread * torch.cos(angle)
    smallest = mean + 2 * spread * torch.cos(angle + 2 * math.pi / 3)
    return largest, 3 * mean - largest - smallest, smallest
