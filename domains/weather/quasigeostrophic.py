"""Two-layer quasi-geostrophic flow on a doubly periodic beta plane: jets and eddies on 64 x 64 points, two fields.

Perturbations psi_1, psi_2 of a sheared flow +U over -U in layers of equal depth (Vallis 2017, section 9.6), domain 2 pi:

    q_i = lap psi_i + k_d^2/2 (psi_j - psi_i)
    d q_1/dt = -J(psi_1, q_1) - U dq_1/dx - (beta + k_d^2 U) dpsi_1/dx
    d q_2/dt = -J(psi_2, q_2) + U dq_2/dx - (beta - k_d^2 U) dpsi_2/dx - drag lap psi_2

Fourier in both directions, fourth-order Runge-Kutta, a filter on the smallest scales. On a graphics card where there is one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from suite.noise import generator
from suite.run import resolve_device


@dataclass(frozen=True)
class QuasiGeostrophic:
    """The model; lengths in units of the domain over 2 pi, velocities in units of U.

    Attributes:
        points: a side of the grid.
        deformation: wavenumber k_d.
        dt: of the Runge-Kutta steps.
        filtered: the filter acts; without it (and drag) total energy is kept.
    """

    points: int = 64
    U: float = 1.0
    beta: float = 18.0
    deformation: float = 6.0
    drag: float = 2.0
    dt: float = 0.005
    filtered: bool = True

    def _wavenumbers(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        along = torch.fft.rfftfreq(self.points, 1 / self.points, device=device)
        across = torch.fft.fftfreq(self.points, 1 / self.points, device=device)[:, None]
        return along, across, along**2 + across**2

    def vorticity(self, psi: Tensor) -> Tensor:
        """Spectral q `(..., 2, n, n/2 + 1)` of spectral psi."""
        K2 = self._wavenumbers(psi.device)[2]
        return -K2 * psi + self.deformation**2 / 2 * (psi.flip(-3) - psi)

    def streamfunction(self, q: Tensor) -> Tensor:
        """Inverse of `vorticity`: the mean of the layers has -K^2, their difference -(K^2 + k_d^2)."""
        K2 = self._wavenumbers(q.device)[2]
        mean, half = (q + q.flip(-3)) / 2, (q - q.flip(-3)) / 2
        barotropic = torch.where(K2 > 0, -mean / K2.clamp_min(1), torch.zeros_like(mean))
        return barotropic - half / (K2 + self.deformation**2)

    def tendency(self, q: Tensor) -> Tensor:
        """`dq/dt`, spectral."""
        kx, ky, K2 = self._wavenumbers(q.device)
        psi = self.streamfunction(q)
        size = (self.points, self.points)
        u, v, zeta = (torch.fft.irfft2(f, s=size) for f in (-1j * ky * psi, 1j * kx * psi, q))
        advection = 1j * kx * torch.fft.rfft2(u * zeta) + 1j * ky * torch.fft.rfft2(v * zeta)
        shear = torch.tensor([self.U, -self.U], device=q.device)[:, None, None]
        gradient = self.beta + self.deformation**2 * shear
        out = -advection - shear * 1j * kx * q - gradient * 1j * kx * psi
        out[..., 1, :, :] += self.drag * K2 * psi[..., 1, :, :]
        return out

    def step(self, q: Tensor) -> Tensor:
        """One Runge-Kutta step, then the filter."""
        a = self.tendency(q)
        b = self.tendency(q + self.dt / 2 * a)
        c = self.tendency(q + self.dt / 2 * b)
        d = self.tendency(q + self.dt * c)
        q = q + self.dt / 6 * (a + 2 * b + 2 * c + d)
        return q * self._filter(q.device) if self.filtered else q

    def _filter(self, device: torch.device) -> Tensor:
        """1 up to 0.65 of the largest wavenumber, then `exp(-23.6 (k - k_c)^4)` (LaCasce 1996)."""
        k = self._wavenumbers(device)[2].sqrt() * 2 * math.pi / self.points
        return torch.exp(-23.6 * (k - 0.65 * math.pi).clamp_min(0) ** 4)

    def run(self, q: Tensor, time: float) -> Tensor:
        for _ in range(round(time / self.dt)):
            q = self.step(q)
        return q

    def energy(self, q: Tensor) -> Tensor:
        """Kinetic and available potential energy per point `(...,)`: `-<psi q>/2`, summed over the layers."""
        size = (self.points, self.points)
        psi = torch.fft.irfft2(self.streamfunction(q), s=size)
        return -(psi * torch.fft.irfft2(q, s=size)).sum(-3).mean((-2, -1)) / 2

    def fields(self, q: Tensor) -> Tensor:
        """Streamfunctions on the grid `(..., 2, n, n)`."""
        return torch.fft.irfft2(self.streamfunction(q), s=(self.points, self.points))

    def perturbed(self, q: Tensor, amplitude: float, rng: torch.Generator) -> Tensor:
        """`q` and a random field with the power spectrum of `q`, `amplitude` times as large."""
        white = torch.fft.rfft2(torch.randn(*q.shape[:-2], self.points, self.points, generator=rng)).to(q.device)
        return q + amplitude * q.abs() * white / self.points


def quasigeostrophic_ensemble(
    dates: int,
    members: int,
    seed: int,
    *,
    model: QuasiGeostrophic | None = None,
    lead: float = 0.6,
    gap: float = 1.0,
    spin_up: float = 12.0,
    analysis: float = 0.1,
    spread: float = 0.1,
    chunk: int = 64,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Forecasts `(D, M, 2, n, n)` and truth `(D, 2, n, n)` of the streamfunctions at `lead`.

    Args:
        gap: time between the dates of the one long run they are taken from.
        analysis, spread: size of the analysis error and of the members' perturbations, relative to the state.
        chunk: states that are run together.
    """
    model = model or QuasiGeostrophic()
    device = resolve_device("auto")
    rng = generator(seed, "quasigeostrophic")
    q = torch.fft.rfft2(0.1 * torch.randn(2, model.points, model.points, generator=rng)).to(device)
    q = model.run(q, spin_up)
    starts = []
    for _ in range(dates):
        starts.append(q)
        q = model.run(q, gap)
    truth, forecast = [], []
    for start in torch.stack(starts).split(max(1, chunk // (members + 1))):
        centre = model.perturbed(start, analysis, rng)
        first = model.perturbed(centre[:, None].repeat(1, members, 1, 1, 1), spread, rng)
        together = torch.cat([start[:, None], first], 1)
        groups = together.split(1 if device.type == "cpu" else len(together))  # few states stay in a processor's cache
        states = torch.cat([model.run(group, lead) for group in groups])
        fields = model.fields(states).cpu().numpy()
        truth.append(fields[:, 0])
        forecast.append(fields[:, 1:])
    return np.concatenate(forecast), np.concatenate(truth)
