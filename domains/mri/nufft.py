"""Non-uniform Fourier transform: through finufft where it is installed (extra `nufft`), else by Kaiser-Bessel gridding.

    y_j = 1 / sqrt(ny nx) sum_r x(r) exp(-2 pi i (ky_j (r_y - ny//2) / ny + kx_j (r_x - nx//2) / nx)),

k in cycles per field of view, so that a Cartesian grid of trajectory points gives the centred orthonormal FFT.
"""

from __future__ import annotations

import importlib.util
import math
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from suite.errors import InputError
from suite.operators import LinearOperator

_WIDTH = 6
"""Points of the gridding kernel along each axis, on a grid of twice the size."""


def nufft(trajectory: Tensor, shape: tuple[int, int], backend: str | None = None) -> Nufft:
    """The transform `(B, C, ny, nx)` to `(B, C, 1, M)` by the best backend, or `"finufft"` or `"torch"` by name.

    Raises:
        InputError: an unknown backend, or finufft asked for and not installed.
    """
    found = importlib.util.find_spec("finufft") is not None
    if backend == "finufft" and not found:
        raise InputError(
            "finufft is not installed; install it with pip install 'diffsuite[nufft]', or use the backend torch"
        )
    if backend not in (None, "finufft", "torch"):
        raise InputError(f"there is no NUFFT backend '{backend}'; use finufft or torch")
    on_cpu = trajectory.device.type == "cpu"
    return (
        Finufft(trajectory, shape)
        if backend == "finufft" or (backend is None and found and on_cpu)
        else Gridding(trajectory, shape)
    )


class Nufft(LinearOperator):
    """What both backends share.

    Attributes:
        trajectory: `(M, 2)`, (ky, kx) in cycles per field of view.
        shape: (ny, nx).
    """

    domain_dtype = torch.complex64

    def __init__(self, trajectory: Tensor, shape: tuple[int, int]) -> None:
        if trajectory.ndim != 2 or trajectory.shape[1] != 2:
            raise InputError(f"a trajectory has the shape (samples, 2), not {tuple(trajectory.shape)}")
        self.trajectory, self.shape = trajectory, shape
        self.scale = 1 / math.sqrt(math.prod(shape))


class Finufft(Nufft):
    """The transform by finufft (Barnett, Magland and af Klinteberg 2019); complex64 or complex128, on the CPU."""

    def __init__(self, trajectory: Tensor, shape: tuple[int, int], tolerance: float = 1e-6) -> None:
        super().__init__(trajectory, shape)
        self.tolerance = tolerance
        points = 2 * math.pi * trajectory.cpu().double().numpy() / np.asarray(shape)
        self.points = [np.ascontiguousarray(points[:, i]) for i in (0, 1)]

    def _apply(self, kind: int, values: Tensor) -> np.ndarray:
        import finufft

        real = np.float64 if values.dtype == torch.complex128 else np.float32
        batch = (
            values.detach()
            .cpu()
            .resolve_conj()
            .reshape(-1, *((len(self.trajectory),) if kind == 1 else self.shape))
            .numpy()
        )
        tolerance = self.tolerance if real == np.float32 else 1e-12
        plan = finufft.Plan(
            kind,
            self.shape,
            n_trans=len(batch),
            eps=tolerance,
            isign=1 if kind == 1 else -1,
            dtype=batch.dtype,
            nthreads=torch.get_num_threads(),
        )
        plan.setpts(*(p.astype(real) for p in self.points))
        out: np.ndarray = plan.execute(np.ascontiguousarray(batch))
        return out.reshape(len(batch), *(self.shape if kind == 1 else (-1,)))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.from_numpy(self._apply(2, x)).to(x.device)
        return self.scale * out.reshape(*x.shape[:2], 1, -1)

    def adjoint(self, y: Tensor) -> Tensor:
        out = torch.from_numpy(self._apply(1, y)).to(y.device)
        return self.scale * out.reshape(*y.shape[:2], *self.shape)


class Gridding(Nufft):
    """The transform by Kaiser-Bessel gridding on a doubled grid (Beatty, Nishimura and Pauly 2005), in torch on any device.

    Relative accuracy about 1e-5; the adjoint is exact, because every factor is transposed.
    """

    def __init__(self, trajectory: Tensor, shape: tuple[int, int]) -> None:
        super().__init__(trajectory, shape)
        self.grid = (2 * shape[0], 2 * shape[1])
        beta = math.pi * math.sqrt((_WIDTH / 2) ** 2 * (2 - 0.5) ** 2 - 0.8)
        k = trajectory.double() * 2  # cycles per doubled field of view: grid points
        first = (k - _WIDTH / 2).ceil()
        taps = first[..., None] + torch.arange(_WIDTH, device=k.device)  # (M, 2, W)
        u = (taps - k[..., None]) * 2 / _WIDTH
        weight = torch.special.i0(beta * (1 - u**2).clamp_min(0).sqrt()) * (u.abs() <= 1)
        index = [taps[:, i].long() % self.grid[i] for i in (0, 1)]
        self.index = (index[0][:, :, None] * self.grid[1] + index[1][:, None, :]).flatten(1)  # (M, W * W)
        self.weight = (weight[:, 0, :, None] * weight[:, 1, None, :]).flatten(1)
        fall = [self._apodisation(n, beta).to(k.device) for n in shape]
        self.correction = self.scale / (fall[0][:, None] * fall[1][None, :])

    @staticmethod
    def _apodisation(n: int, beta: float) -> Tensor:
        """The kernel's own transform at the pixels of an axis of n."""
        x = (torch.arange(n, dtype=torch.float64) - n // 2) / (2 * n)
        root = (beta**2 - (math.pi * _WIDTH * x) ** 2).sqrt()
        return _WIDTH * torch.sinh(root) / root

    def forward(self, x: Tensor) -> Tensor:
        ny, nx = self.shape
        wide = x.new_zeros((*x.shape[:2], *self.grid))
        wide[..., :ny, :nx] = self.correction.to(x.real.dtype) * x
        spectrum = torch.fft.fftn(wide.roll((-(ny // 2), -(nx // 2)), (-2, -1)), dim=(-2, -1)).flatten(2)
        weight = self.weight.to(x.dtype)
        coils = [torch.linalg.vecdot(weight, grid[self.index]) for grid in spectrum.flatten(0, 1)]
        return torch.stack(coils).reshape(*x.shape[:2], 1, -1)

    def adjoint(self, y: Tensor) -> Tensor:
        ny, nx = self.shape
        spectrum = y.new_zeros((y.shape[0] * y.shape[1], math.prod(self.grid)))
        weight, index = self.weight.to(y.dtype), self.index.flatten()
        for grid, samples in zip(spectrum, y.reshape(len(spectrum), -1), strict=True):
            grid.index_add_(0, index, (weight * samples[:, None]).flatten())
        wide = torch.fft.ifftn(spectrum.reshape(*y.shape[:2], *self.grid), dim=(-2, -1), norm="forward")
        return self.correction.to(y.real.dtype) * wide.roll((ny // 2, nx // 2), (-2, -1))[..., :ny, :nx]


class NonCartesianSense(LinearOperator):
    """`F S` along a trajectory: images `(B, 1, ny, nx)` to coil data `(B, C, 1, M)`.

    Its normal operator needs no NUFFT: `F^H F` is a convolution, done on a doubled grid (Toeplitz embedding, Fessler et al.
    2005).
    """

    domain_dtype = torch.complex64

    def __init__(self, maps: Tensor, fourier: Nufft) -> None:
        self.maps, self.fourier = maps, fourier
        self.domain_shape = (1, *maps.shape[2:])

    def forward(self, x: Tensor) -> Tensor:
        return self.fourier.forward(self.maps * x)

    def adjoint(self, y: Tensor) -> Tensor:
        return (self.maps.conj() * self.fourier.adjoint(y)).sum(1, keepdim=True)

    @cached_property
    def _normal(self) -> ToeplitzNormal:
        return ToeplitzNormal(self.maps, self.fourier)

    @property
    def normal(self) -> LinearOperator:
        return self._normal


class ToeplitzNormal(LinearOperator):
    """`S^H F^H F S` by FFTs on a doubled grid."""

    domain_dtype = torch.complex64

    def __init__(self, maps: Tensor, fourier: Nufft) -> None:
        self.maps = maps
        ny, nx = fourier.shape
        double = type(fourier)(2 * fourier.trajectory, (2 * ny, 2 * nx))
        ones = torch.ones((1, 1, 1, len(fourier.trajectory)), dtype=maps.dtype, device=maps.device)
        response = double.adjoint(ones) * (2 / math.sqrt(ny * nx))  # at lags -n .. n-1
        self.kernel = torch.fft.fftn(response.roll((-ny, -nx), (-2, -1)), dim=(-2, -1)).real

    def forward(self, x: Tensor) -> Tensor:
        ny, nx = x.shape[-2:]
        k = torch.fft.fftn(self.maps * x, s=self.kernel.shape[-2:], dim=(-2, -1))
        images = torch.fft.ifftn(self.kernel * k, dim=(-2, -1))[..., :ny, :nx]
        return (self.maps.conj() * images).sum(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.forward(y)


def density_compensation(fourier: Nufft, iterations: int = 20) -> Tensor:
    """Weights `(1, 1, 1, M)` that bring `F^H D F` near the identity: `w <- w / K w` (Pipe and Menon 1999).

    K spreads samples to the grid and back with the positive gridding kernel; the level is set on a smooth disc.
    """
    gridding = fourier if isinstance(fourier, Gridding) else Gridding(fourier.trajectory, fourier.shape)
    weight, index = gridding.weight.to(torch.float32), gridding.index
    w = torch.ones(len(weight), device=weight.device)
    for _ in range(iterations):
        grid = torch.zeros(math.prod(gridding.grid), device=weight.device)
        grid.index_add_(0, index.flatten(), (weight * w[:, None]).flatten())
        w = w / (weight * grid[index]).sum(1).clamp_min(1e-12)
    ny, nx = fourier.shape
    disc = torch.outer(torch.hann_window(ny, False), torch.hann_window(nx, False)).to(weight.device)
    blob = disc.to(torch.complex64)[None, None]
    back = fourier.adjoint(w * fourier.forward(blob))
    return (w / float((back * blob).sum().real / blob.abs().square().sum())).reshape(1, 1, 1, -1)
