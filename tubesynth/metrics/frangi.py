"""How much a CT looks like bright tubes: multi-scale vesselness of Frangi et al. 1998.

Eigenvalues of the Hessian at scales in mm (doi:10.1007/BFb0056195, equations 13 to 15), with
derivatives taken in mm, so anisotropic voxels do not matter. The response to structure is measured
against a fixed STRUCTURE_HU and not against the image's own maximum, as the numbers of a real CT, a
reconstruction and a synthesis must be comparable. Arrays are (X, Y, Z) in HU.
"""

import math

import numpy as np
import torch

ALPHA = BETA = 0.5
# A tube of contrast A and radius r gives a Hessian of norm 0.52 A at sigma = r / sqrt(2); half of
# that of a faint lumen (A = 300 HU over fat) is taken as the turning point.
STRUCTURE_HU = 80.0
RADII_MM = (0.8, 1.4, 2.4)  # coronaries, from the tips to the left main stem
ROWS = 32  # of a filter's matrix at once
CHUNK = 2**20  # voxels whose eigenvalues are computed at once
SHELL_MM = 3.0


def vesselness(hu, spacing, radii_mm=RADII_MM, where=None) -> np.ndarray:
    """float32 in [0, 1]: the largest response over scales, 0 where nothing is tubular.

    (X, Y, Z), or with a bool mask `where` (X, Y, Z) only its N voxels, in NumPy's order: the
    eigenvalues are most of the work.
    """
    image = torch.from_numpy(np.asarray(hu, dtype=np.float32))
    chosen = slice(None) if where is None else torch.from_numpy(np.flatnonzero(where))
    best = torch.zeros(image.numel())[chosen]
    for radius in radii_mm:
        # Below 0.6 voxels a sampled Gaussian is no longer one, and it must be round in mm.
        sigma = max(radius / math.sqrt(2), 0.6 * float(max(spacing)))
        hessian = [part.reshape(-1)[chosen] for part in _hessian(image, spacing, sigma)]
        torch.maximum(best, _response(hessian), out=best)
    return best.reshape(image.shape if where is None else -1).numpy()


def vesselness_scores(hu, mask, spacing, radii_mm=RADII_MM) -> dict[str, float]:
    """Vesselness inside a vessel mask against its shell (voxels 1 voxel to SHELL_MM further away).

    vesselness and vesselness_shell: means; vesselness_auc: the share of pairs of a vessel and a
    shell voxel in which the vessel's is larger (0.5: it does not stand out). {} without vessels.
    """
    from scipy.ndimage import distance_transform_edt

    spacing = np.asarray(spacing, dtype=float)
    found = np.argwhere(mask)
    if not len(found):
        return {}
    margin = np.ceil((SHELL_MM + 3 * max(radii_mm)) / spacing).astype(int) + 1
    low = np.maximum(found.min(0) - margin, 0)
    box = tuple(slice(a, b) for a, b in zip(low, found.max(0) + margin + 1, strict=True))
    inside = np.asarray(mask[box], dtype=bool)
    away = distance_transform_edt(~inside, spacing)
    shell = (away > spacing.max()) & (away <= spacing.max() + SHELL_MM)
    where = inside | shell
    response = vesselness(hu[box], spacing, radii_mm, where)
    vessel, around = response[inside[where]], response[shell[where]]
    scores = {"vesselness": float(vessel.mean())}
    if len(around):
        ordered = np.sort(around)
        below = sum(np.searchsorted(ordered, vessel, side) for side in ("left", "right")) / 2
        scores["vesselness_shell"] = float(around.mean())
        scores["vesselness_auc"] = float(below.mean() / len(around))
    return scores


def _hessian(image, spacing, sigma) -> list[torch.Tensor]:
    """xx, yy, zz, xy, xz, yz second derivatives times sigma^2 (all scales answer alike)."""
    filters = [
        [_gaussian_matrix(n, float(s), sigma, order) for order in (0, 1, 2)]
        for n, s in zip(image.shape, spacing, strict=True)
    ]
    along_x = [_along(0, m, image) for m in filters[0]]
    parts = []
    for x, y, z in ((2, 0, 0), (0, 2, 0), (0, 0, 2), (1, 1, 0), (1, 0, 1), (0, 1, 1)):
        parts.append(_along(2, filters[2][z], _along(1, filters[1][y], along_x[x])))
    return parts


def _along(axis, matrix, image) -> torch.Tensor:
    """A banded matrix on one axis, by blocks of rows: on a CPU far faster than a convolution."""
    out = torch.empty_like(image)
    for start in range(0, len(matrix), ROWS):
        rows = matrix[start : start + ROWS]
        used = rows.abs().amax(0).nonzero()
        first, size = int(used[0]), int(used[-1] - used[0]) + 1
        band, part = rows[:, first : first + size], image.narrow(axis, first, size)
        target = out.narrow(axis, start, len(rows))
        if axis == 2:
            target.copy_(part @ band.T)
        else:
            target.copy_((band @ part.flatten(axis + 1)).reshape(target.shape))
    return out


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
    out = torch.empty_like(hessian[0])
    for start in range(0, len(out), CHUNK):
        first, second, third = _eigenvalues(*(h[start : start + CHUNK] for h in hessian))
        # second and third are the two most negative; along the tube `first` is near 0.
        squares = first.square() + second.square() + third.square()
        plate = (second / third).square()
        blob = first.square() / (second * third)
        value = (1 - torch.exp(-plate / (2 * ALPHA**2))) * torch.exp(-blob / (2 * BETA**2))
        value *= 1 - torch.exp(-squares / (2 * STRUCTURE_HU**2))
        tubular = (second < 0) & (first.abs() <= second.abs())
        out[start : start + CHUNK] = torch.where(tubular, value, 0.0)
    return out


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
