"""Coil sensitivity maps from the fully sampled centre of k-space: ESPIRiT, and Walsh's adaptive combination.

Maps are normalised: `sum_c |s_c|^2 = 1` inside the support and 0 outside. Their common phase is that of the combination of
coils with the most energy, so that the image's phase is as smooth as that of one coil.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from suite.errors import InputError
from suite.operators import FFT

ROUND = 5
"""Iterations of the power method between two looks at which pixels still change."""

SETTLED = 1e-6
"""One less the cosine between the vectors of two iterations, below which a pixel is done."""


def calibration_box(mask: Tensor, most: int = 24) -> tuple[slice, slice]:
    """The largest centred box where every point of `mask (ny, nx)` is sampled, at most `most` wide.

    Where one side is narrower than `most` the other may be longer, so that the box holds about as many points.

    Raises:
        InputError: the centre of k-space was not acquired.
    """
    ny, nx = mask.shape
    cy, cx = ny // 2, nx // 2
    if not bool(mask[cy, cx]):
        raise InputError("the centre of k-space was not acquired, so coil maps cannot be estimated")

    def grown(limit: tuple[int, int]) -> tuple[int, int]:
        best = (1, 1)
        for h in range(1, limit[0] + 1):
            top = cy - h // 2
            if top < 0 or top + h > ny:
                break
            rows = mask[top : top + h].all(0)
            w = 1
            while (
                w < limit[1]
                and cx - (w + 1) // 2 >= 0
                and bool(rows[cx - (w + 1) // 2 : cx - (w + 1) // 2 + w + 1].all())
            ):
                w += 1
            if not bool(rows[cx]):
                break
            if h * w > best[0] * best[1]:
                best = (h, w)
        return best

    h, w = grown((min(most, ny), min(most, nx)))
    if min(h, w) < most:
        other = -(-most * most // max(1, min(h, w)))
        h, w = grown((min(ny, other), w)) if w <= h else grown((h, min(nx, other)))
    top, left = cy - h // 2, cx - w // 2
    return slice(top, top + h), slice(left, left + w)


def espirit(
    calibration: Tensor,
    shape: tuple[int, int],
    *,
    kernel: int = 6,
    threshold: float = 0.02,
    crop: float = 0.95,
    iterations: int = 40,
    noise: float = 0.0,
) -> Tensor:
    """Maps `(S, C, ny, nx)` from calibration data `(S, C, h, w)` (Uecker et al., Magn Reson Med 71, 990, 2014).

    The kernels that span the calibration matrix's row space make, at each pixel, a C x C matrix whose eigenvector of
    eigenvalue 1 is the sensitivity. The matrices are the Fourier transform of the kernels' correlations, which are C^2
    small arrays whatever the number of kernels, so no kernel is transformed by itself.

    Args:
        calibration: centre of k-space.
        shape: (ny, nx) of the maps.
        kernel: width of the kernels.
        threshold: singular values below this share of the largest belong to the null space.
        crop: pixels with a smaller eigenvalue lie outside the support.
        iterations: of the power method at each pixel.
        noise: standard deviation of the white noise in each part; singular values that it alone may have (Marchenko and
            Pastur's edge) belong to the null space too.

    Raises:
        InputError: a calibration region smaller than two kernels' worth of shifts.
    """
    maps = [_espirit(slice_, shape, kernel, threshold, crop, iterations, noise) for slice_ in calibration]
    return torch.stack(maps)


def _espirit(
    data: Tensor, shape: tuple[int, int], kernel: int, threshold: float, crop: float, iterations: int, noise: float
) -> Tensor:
    coils, h, w = data.shape
    kernel = min(kernel, h, w)
    if (h - kernel + 1) * (w - kernel + 1) < 2 or kernel < 2:
        raise InputError(f"the calibration region of {h} x {w} points is too small for ESPIRiT; use the Walsh maps")
    level = data.abs().amax()
    data = data / level
    patches = data.unfold(1, kernel, 1).unfold(2, kernel, 1)  # (C, h', w', k, k)
    rows = patches.permute(1, 2, 0, 3, 4).reshape(-1, coils * kernel * kernel)
    values, vectors = torch.linalg.eigh(rows.mH @ rows)  # squared singular values, rising
    edge = 2 * (noise / float(level)) ** 2 * sum(n**0.5 for n in rows.shape) ** 2
    lowest = min(max(threshold**2 * float(values[-1]), edge), 0.99 * float(values[-1]))
    kept = vectors[:, values > lowest].mH.reshape(-1, coils, kernel, kernel)
    matrices = _pixel_matrices(kept, shape)
    start = _inverse_dft(shape[0], h, data) @ data @ _inverse_dft(shape[1], w, data).mT
    vector, value = _leading(matrices, start, iterations)
    return _referred(vector, data) * (value > crop)


def _pixel_matrices(kernels: Tensor, shape: tuple[int, int]) -> Tensor:
    """`M_cd(r) = sum_n v_nc(r) v_nd(r)^* / k^2` at each pixel, `(C, C, ny, nx)`, v(r) the kernels' inverse transform."""
    k = kernels.shape[-1]
    size = 2 * k - 1
    spectrum = torch.fft.fft2(kernels, s=(size, size)).permute(2, 3, 1, 0)
    # products of transforms on a grid that holds the whole correlation, summed over n, then back to lags -(k-1)..k-1
    products = (spectrum @ spectrum.mH).permute(2, 3, 0, 1)
    lags = torch.fft.ifft2(products).roll((k - 1, k - 1), (-2, -1)) / k**2
    out: Tensor = _inverse_dft(shape[0], size, kernels) @ lags @ _inverse_dft(shape[1], size, kernels).mT
    return out


def _inverse_dft(n: int, size: int, like: Tensor) -> Tensor:
    """`exp(2 pi i l (r - n//2) / n)`, pixels r times the frequencies l of a box of `size` around 0."""
    lag = torch.arange(size, device=like.device) - size // 2
    pixel = torch.arange(n, device=like.device) - n // 2
    angle = 2 * torch.pi * torch.outer(pixel, lag).double() / n
    return torch.polar(torch.ones_like(angle), angle).to(like.dtype)


def _leading(matrices: Tensor, start: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Leading eigenvector `(C, ny, nx)` and eigenvalue `(ny, nx)` of Hermitian matrices `(C, C, ny, nx)`: power method.

    Every `ROUND` iterations the pixels that no longer change are left behind: most are done after the first round.
    """
    m, v = matrices.flatten(2), start.flatten(1)
    vectors, values = torch.empty_like(v), torch.ones_like(v[0].real)
    rows = torch.arange(v.shape[1], device=v.device)
    for done in range(ROUND, iterations + ROUND, ROUND):
        for _ in range(ROUND):
            last, v = v, (m * v).sum(1)
            value = torch.linalg.vector_norm(v, dim=0)
            v = v / value.clamp_min(1e-30)
        vectors[:, rows], values[rows] = v, value
        moving = (last.conj() * v).sum(0).abs() < 1 - SETTLED
        if done >= iterations or not bool(moving.any()):
            break
        rows, m, v = rows[moving], m[..., moving], v[:, moving]
    return vectors.reshape(start.shape), values.reshape(start.shape[1:])


def _referred(vector: Tensor, data: Tensor) -> Tensor:
    """The vectors `(C, ny, nx)` with a common phase: that of the combination of coils in which `data (C, ...)` is strongest."""
    flat = data.flatten(1)
    reference = torch.linalg.eigh(flat @ flat.mH)[1][:, -1]
    along = torch.einsum("c,cyx->yx", reference.conj(), vector)
    return vector * torch.sgn(along).conj()


def walsh(images: Tensor, *, window: int = 7, floor: float = 0.05) -> Tensor:
    """Maps `(S, C, ny, nx)` from low-resolution coil images (Walsh, Gmitro and Marcellin, Magn Reson Med 43, 682, 2000).

    At each pixel the leading eigenvector of the coils' covariance over a window; for calibration regions too small for
    ESPIRiT.

    Args:
        images: coil images `(S, C, ny, nx)`, smooth.
        window: width of the averaging window.
        floor: pixels with less than this share of the 99th percentile of the magnitude lie outside the support.
    """
    slices, coils, ny, nx = images.shape
    products = (images[:, :, None] * images[:, None].conj()).reshape(slices, coils * coils, ny, nx)
    pad = window // 2

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(x, (pad,) * 4, mode="replicate"), window, 1)

    matrices = torch.complex(mean(products.real), mean(products.imag)).reshape(slices, coils, coils, ny, nx)
    maps = []
    for matrix, image in zip(matrices, images, strict=True):
        scale = matrix.diagonal().real.sum(-1)  # (ny, nx), the energy of all coils
        high = torch.quantile(scale.flatten()[:: max(1, ny * nx // 100_000)], 0.99)
        vector, _ = _leading(matrix / scale.clamp_min(1e-12 * float(high)), image, 24)
        maps.append(_referred(vector, image) * (scale > floor**2 * high))
    return torch.stack(maps)


def low_resolution(data: Tensor, box: tuple[slice, slice]) -> Tensor:
    """Coil images `(S, C, ny, nx)` of the calibration region alone, under a Hann window against ringing."""
    ny, nx = data.shape[-2:]
    h, w = (s.stop - s.start for s in box)
    taper = torch.outer(torch.hann_window(h + 2, False)[1:-1], torch.hann_window(w + 2, False)[1:-1]).to(data.device)
    small = torch.zeros_like(data)
    small[..., box[0], box[1]] = data[..., box[0], box[1]] * taper
    assert small.shape[-2:] == (ny, nx)
    return FFT().adjoint(small)
