"""Vesselness of Frangi et al. 1998: the response of a CT to bright tubes, at several scales.

Eigenvalues of the Hessian at scales in mm (doi:10.1007/BFb0056195, equations 13 to 15), with
derivatives in mm, so anisotropic voxels do not matter. The norm of the Hessian is compared with the
fixed STRUCTURE_HU and not with the image's own maximum, so that the values of a real CT, a
reconstruction and a synthesis are comparable. Arrays are (X, Y, Z) in HU.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from tubesynth.metrics.dilation import Spacing, within
from tubesynth.volume.grid import Box, bounding_box

ALPHA = BETA = 0.5
# c of equation 13. A tube of contrast A and radius r gives a Hessian of norm 0.52 A at sigma =
# r / sqrt(2); c is half of that of a faint lumen (A = 300 HU over fat).
STRUCTURE_HU = 80.0
RADII_MM = (0.8, 1.4, 2.4)  # coronaries, from the tips to the left main stem
TILE = 48  # voxels a side
SHELL_MM = 3.0


def vesselness(
    hu: np.ndarray,
    spacing: Spacing,
    radii_mm: Sequence[float] = RADII_MM,
    where: np.ndarray | None = None,
) -> np.ndarray:
    """float32 in [0, 1]: the largest response over scales, 0 where nothing is tubular.

    hu: (X, Y, Z); spacing: (3,) mm; the result is (X, Y, Z), or (N,) for the N voxels of the bool
    mask `where` (X, Y, Z) in NumPy's order. Tiles without such voxels are skipped.
    """
    image = torch.from_numpy(np.array(hu, dtype=np.float32))
    scored = torch.ones(image.shape, dtype=torch.bool)
    if where is not None:
        scored = torch.from_numpy(np.ascontiguousarray(where, dtype=bool))
    best = torch.zeros(image.shape)
    # sigma = r / sqrt(2) responds most to a tube of radius r. A sampled Gaussian needs sigma of 0.6
    # voxels or more, and it must be round in mm.
    smallest_mm = 0.6 * float(max(spacing))
    scales = [_filters(image.shape, spacing, max(r / math.sqrt(2), smallest_mm)) for r in radii_mm]
    for tile in _tiles(image.shape):
        voxels = scored[tile].reshape(-1).nonzero()[:, 0]  # (M,) flat indices in the tile
        if not len(voxels):
            continue
        values = torch.zeros(best[tile].shape)
        for filters in scales:
            hessian = [field.reshape(-1)[voxels] for field in _hessian(image, filters, tile)]
            values.view(-1)[voxels] = torch.maximum(values.view(-1)[voxels], _response(hessian))
        best[tile] = values
    return (best if where is None else best[scored]).numpy()


def shell_of(mask: np.ndarray, spacing: Spacing) -> tuple[Box, np.ndarray] | tuple[None, None]:
    """A box around the vessels with room for the filters, and the mask of their shell in that box.

    The shell lies from 1 voxel to 1 voxel plus SHELL_MM outside; (None, None) without vessels.
    """
    spacing = np.asarray(spacing, dtype=float)
    margin = np.ceil((SHELL_MM + 3 * max(RADII_MM)) / spacing).astype(int) + 1
    box = bounding_box(mask, margin)
    if box is None:
        return None, None
    near = within(mask[box], spacing, spacing.max())
    return box, within(mask[box], spacing, spacing.max() + SHELL_MM) & ~near


def against_shell(vessel: np.ndarray, shell: np.ndarray) -> dict[str, float]:
    """Scores of the vesselness of vessel voxels (N,) against that of shell voxels (M,).

    vesselness and vesselness_shell: means; vesselness_contrast: their difference; vesselness_auc:
    share of pairs of a vessel and a shell voxel in which the vessel's is larger (0.5: no contrast).
    """
    scores = {"vesselness": float(vessel.mean())}
    if len(shell):
        # Mann-Whitney U / (N M): shell values below a vessel's value; equal ones count as half.
        ordered = np.sort(shell)
        below = (np.searchsorted(ordered, vessel) + np.searchsorted(ordered, vessel, "right")) / 2
        scores["vesselness_shell"] = float(shell.mean())
        scores["vesselness_contrast"] = scores["vesselness"] - scores["vesselness_shell"]
        scores["vesselness_auc"] = float(below.mean() / len(shell))
    return scores


def _tiles(shape: Sequence[int]) -> Iterator[Box]:
    """Blocks of at most TILE voxels a side, whose six fields fit into the processor's cache."""
    starts = [range(0, n, TILE) for n in shape]
    for corner in itertools.product(*starts):
        x, y, z = (slice(i, min(i + TILE, n)) for i, n in zip(corner, shape, strict=True))
        yield x, y, z


def _filters(shape: Sequence[int], spacing: Spacing, sigma_mm: float) -> list[list[Tensor]]:
    """For each axis of n voxels, the Gaussian and its two derivatives as (n, n) banded matrices."""
    return [
        [_gaussian_matrix(n, float(s), sigma_mm, order) for order in (0, 1, 2)]
        for n, s in zip(shape, spacing, strict=True)
    ]


def _hessian(image: Tensor, filters: list[list[Tensor]], tile: Box) -> list[Tensor]:
    """xx, yy, zz, xy, xz and yz derivatives of a tile, (X, Y, Z) each, times sigma^2.

    The factor makes scales comparable (Lindeberg's normalization). Banded matrices on the tile and
    its surroundings: on a CPU far faster than convolutions.
    """
    bands, source = [], []
    for axis, rows in enumerate(tile):
        # The columns with weights in the rows of this tile: the tile and the reach of the filters.
        columns = (filters[axis][0][rows].any(0) | filters[axis][2][rows].any(0)).nonzero()
        first, last = int(columns[0]), int(columns[-1]) + 1
        bands.append([matrix[rows, first:last] for matrix in filters[axis]])
        source.append(slice(first, last))
    block = image[tuple(source)]  # (X', Y', Z'), larger than the tile
    # Separable: along x for the orders 0 to 2, (X, Y', Z') each; then y and z for each of the six.
    along_x = [(m @ block.reshape(len(block), -1)).view(len(m), *block.shape[1:]) for m in bands[0]]
    return [
        (bands[1][y] @ along_x[x]) @ bands[2][z].T
        for x, y, z in ((2, 0, 0), (0, 2, 0), (0, 0, 2), (1, 1, 0), (1, 0, 1), (0, 1, 1))
    ]


def _gaussian_matrix(n: int, spacing_mm: float, sigma_mm: float, order: int) -> Tensor:
    """(n, n): a Gaussian or its derivative times sigma^order; the edge voxel continues outside."""
    reach = int(math.ceil(4 * sigma_mm / spacing_mm))
    # u = x / sigma: G, sigma G' = -u G and sigma^2 G'' = (u^2 - 1) G; a correlation flips u's sign.
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


def _response(hessian: list[Tensor]) -> Tensor:
    """Equation 15 for bright tubes: six (N,) -> (N,).

    V = (1 - exp(-R_A^2 / 2 alpha^2)) exp(-R_B^2 / 2 beta^2) (1 - exp(-S^2 / 2 c^2)), 0 where the
    two eigenvalues across the tube are not both negative.
    """
    # In a bright tube the first is near 0 (along it), the other two are negative (across it).
    first, second, third = _eigenvalues(*hessian)
    squares = first.square() + second.square() + third.square()  # S^2
    plate = (second / third).square()  # R_A^2: 0 in a plate, 1 in a tube
    blob = first.square() / (second * third)  # R_B^2: 0 in a tube, 1 in a ball
    value = (1 - torch.exp(-plate / (2 * ALPHA**2))) * torch.exp(-blob / (2 * BETA**2))
    value *= 1 - torch.exp(-squares / (2 * STRUCTURE_HU**2))
    tubular = (second < 0) & (first.abs() <= second.abs())
    return torch.where(tubular, value, 0.0)


def _eigenvalues(
    xx: Tensor, yy: Tensor, zz: Tensor, xy: Tensor, xz: Tensor, yz: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues of symmetric 3 x 3 matrices, largest first (Smith 1961, closed form); (N,) each.

    m + 2 p cos(phi + 2 pi k / 3) for k = 0, 1, 2, with m = tr(A) / 3, B = A - m I,
    p = sqrt(tr(B^2) / 6) and phi = acos(det(B) / 2 p^3) / 3.
    """
    mean = (xx + yy + zz) / 3
    xx, yy, zz = xx - mean, yy - mean, zz - mean
    off_diagonal = xy.square() + xz.square() + yz.square()
    spread = ((xx.square() + yy.square() + zz.square() + 2 * off_diagonal) / 6).sqrt()
    determinant = (
        xx * yy * zz + 2 * xy * xz * yz - xx * yz.square() - yy * xz.square() - zz * xy.square()
    )
    cosine = (determinant / (2 * spread.pow(3).clamp_min(1e-20))).clamp(-1, 1)
    angle = torch.acos(cosine) / 3
    largest = mean + 2 * spread * torch.cos(angle)
    smallest = mean + 2 * spread * torch.cos(angle + 2 * math.pi / 3)
    return largest, 3 * mean - largest - smallest, smallest  # their sum is the trace
