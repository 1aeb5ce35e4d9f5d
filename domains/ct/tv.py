"""Total-variation reconstruction: statistically weighted least squares with isotropic TV, mu >= 0.

    min_x  1/2 sum w (A x - y)^2 + lambda sum |grad x|,   x >= 0

solved by the primal-dual method of Chambolle and Pock with diagonal preconditioning (Pock and Chambolle, ICCV 2011) and
over-relaxation (Condat 2013). Every slice has its own steps and its own lambda.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from domains.ct.compiled import run_tasks
from domains.ct.fbp import fbp
from domains.ct.physics import MU_WATER_PER_MM, estimate_photons, log_weights
from domains.ct.projector import Projector
from suite.errors import InputError
from suite.linalg import expand

_RELAXATION = 1.8
_STEP = 45.0  # primal against dual step: within a factor of 2 of the best from 1e4 to 1e6 photons, 15 to 120 views


def tv(
    projector: Projector,
    sinogram: Tensor,
    weights: Tensor | None = None,
    *,
    penalty: float | Tensor | None = None,
    iterations: int = 100,
    start: Tensor | None = None,
) -> Tensor:
    """Reconstruct `mu` in 1/mm, `(B, C, ny, nx)`, from line integrals `(B, C, V, K)`.

    Args:
        projector: the scan's operator.
        sinogram: line integrals.
        weights: inverse variances of their noise, broadcastable to the sinogram; by default photon noise of the size
            that the data show (`estimate_photons`).
        penalty: lambda, in mm, one number or one per batch item `(B,)`; by default `tv_penalty`.
        iterations: applications of `A` and `A^T`.
        start: first image (default: FBP with the Hann filter).

    Raises:
        InputError: a negative penalty, or shapes that do not fit.
    """
    batch, channels = sinogram.shape[:2]
    y = sinogram.flatten(0, 1)[:, None]
    w = statistical_weights(sinogram) if weights is None else weights.expand_as(sinogram)
    w = level_weights(y, w.flatten(0, 1)[:, None])
    if penalty is None:
        strength = tv_penalty(projector, y, w)
    else:
        strength = torch.as_tensor(penalty, dtype=y.dtype, device=y.device).expand(batch).repeat_interleave(channels)
        if not bool((strength >= 0).all()):
            raise InputError("the TV penalty must not be negative")
    x = fbp(projector.geometry, y, "hann") if start is None else start.flatten(0, 1)[:, None]
    x = _primal_dual(projector, y, w.sqrt(), expand(strength, y), x.clamp_min(0), iterations)
    return x.reshape(batch, channels, *projector.geometry.image_shape)


def statistical_weights(sinogram: Tensor) -> Tensor:
    """Weights of data whose noise is not known: photon noise, its strength estimated for each slice `(B, C)`."""
    slices = sinogram.flatten(0, 1)
    photons = estimate_photons(slices[:, None])
    return log_weights(slices, photons[:, None, None]).reshape(sinogram.shape)


def level_weights(sinogram: Tensor, weights: Tensor) -> Tensor:
    """Cap each item's weights at their median over the rays through the object.

    Rays through little or no matter weigh up to a thousand times more than those through the body. That slows every
    first-order method down and adds nothing to the image (30 views, 1e5 photons, chest: 0.1 dB worse when converged).
    """
    through = (sinogram > 0.05 * sinogram.flatten(1).amax(1).reshape(-1, 1, 1, 1)) & (weights > 0)
    median = torch.where(through, weights, torch.nan).flatten(1).nanmedian(1).values
    return torch.minimum(weights, expand(torch.nan_to_num(median, nan=torch.inf), weights))


def tv_penalty(projector: Projector, sinogram: Tensor, weights: Tensor) -> Tensor:
    """A penalty for each item `(B,)`, in mm, from the noise alone: `penalty_for` its `pixel_information`."""
    return penalty_for(pixel_information(projector, sinogram, weights))


def penalty_for(noise: Tensor) -> Tensor:
    """The penalty, in mm, where the gradient of the misfit has noise of standard deviation d at a pixel (in mm).

    A penalty that balances it is a share of d, smaller where the noise is lower and d larger:
    `lambda = 0.6 d (mu d / 10)^(-1/3)` with the attenuation mu of water. The two numbers were fitted to real slices at 15 to 180
    views and 1e4 to 1e6 photons (benchmarks/tv_penalty.py).
    """
    return 0.6 * noise * (MU_WATER_PER_MM * noise / 10).clamp_min(1e-3) ** (-1 / 3)


def pixel_information(projector: Projector, sinogram: Tensor, weights: Tensor) -> Tensor:
    """`d = sqrt((A^T W A)_jj)` at a usual pixel j of the object, in mm, one for each item `(B,)`.

    1/d is the standard deviation, in 1/mm, of one pixel were all others known. Taken as `sqrt(p (A^T w)_j)` for the pixel
    size p and the median over the pixels that all rays cross inside the object.
    """
    through = projector.adjoint((sinogram > 0.05 * sinogram.flatten(1).amax(1).reshape(-1, 1, 1, 1)).to(weights.dtype))
    inside = through >= 0.999 * through.flatten(1).amax(1).reshape(-1, 1, 1, 1)
    density = torch.where(inside, projector.adjoint(weights), torch.nan).flatten(1).nanmedian(1).values
    return (projector.geometry.pixel_size_mm * torch.nan_to_num(density)).sqrt()


def _primal_dual(projector: Projector, y: Tensor, root: Tensor, strength: Tensor, x: Tensor, iterations: int) -> Tensor:
    """Pock and Chambolle 2011, algorithm 1, for `K = (sqrt(w) A, a grad)`; `a` gives both blocks the same scale."""
    lengths = projector(torch.ones_like(x[:1]))
    columns = projector.adjoint(root)
    a = expand(columns.flatten(1).mean(1) / 4, x)
    scale = expand(_STEP / (root * lengths).flatten(1).amax(1).clamp_min(1e-6), x)
    tau = scale / (columns + 4 * a)
    sigma_data = 1 / (scale * (root * lengths).clamp_min(1e-6))
    sigma_grad = 1 / (scale * 2 * a)
    target, radius = root * y, strength / a

    step = _compiled_step if x.device.type == "cpu" else _step
    q, x = torch.zeros_like(y), x.clone(memory_format=torch.contiguous_format)
    p = x.new_zeros((len(x), 2, *x.shape[2:]))
    new, ahead = torch.empty_like(x), torch.empty_like(x)
    for _ in range(iterations):
        step(x, p, projector.adjoint(root * q), tau, a, sigma_grad * a, radius, new, ahead)
        q_new = (q + sigma_data * (root * projector(ahead) - target)) / (1 + sigma_data)
        q = torch.lerp(q, q_new, _RELAXATION)
    return new


def _step(
    x: Tensor, p: Tensor, back: Tensor, tau: Tensor, a: Tensor, ascent: Tensor, radius: Tensor, *out: Tensor
) -> None:
    """The primal step and the dual step of the gradient, in place: `x` `(B, 1, ny, nx)`, `p` `(B, 2, ny, nx)`.

    `out` takes the new image, not relaxed, and its extrapolation.
    """
    new, ahead = out
    torch.clamp_min(x - tau * (back + a * gradient_adjoint(p)), 0, out=new)
    torch.sub(2 * new, x, out=ahead)
    p_new = p + ascent * gradient(ahead)
    p_new *= (radius / magnitude(p_new).clamp_min_(1e-30)).clamp_max(1)
    x.lerp_(new, _RELAXATION)
    p.lerp_(p_new, _RELAXATION)


def _compiled_step(
    x: Tensor, p: Tensor, back: Tensor, tau: Tensor, a: Tensor, ascent: Tensor, radius: Tensor, *out: Tensor
) -> None:
    """`_step` on the processor: one pass over each slice, which stays in its cache, in place of twenty over the stack."""
    from domains.ct import _tv_kernels as kernels

    images = [tensor[:, 0].numpy() for tensor in (x, back, tau.expand_as(x).contiguous(), *out)]
    duals, numbers = p.numpy(), [number.flatten().numpy() for number in (a, ascent, radius)]
    relaxation = images[0].dtype.type(_RELAXATION)

    def one(k: int) -> None:
        slice_, from_data, share, new, ahead = (image[k] for image in images)
        scale, up, longest = (number[k] for number in numbers)
        kernels.primal(slice_, duals[k], from_data, share, scale, relaxation, new, ahead)
        kernels.dual(ahead, duals[k], up, longest, relaxation)

    run_tasks(partial(one, k) for k in range(len(x)))


def gradient(x: Tensor) -> Tensor:
    """Forward differences along x and y, zero at the far edge: `(B, 1, ny, nx)` to `(B, 2, ny, nx)`."""
    g = x.new_zeros((len(x), 2, *x.shape[2:]))
    torch.sub(x[:, 0, :, 1:], x[:, 0, :, :-1], out=g[:, 0, :, :-1])
    torch.sub(x[:, 0, 1:], x[:, 0, :-1], out=g[:, 1, :-1])
    return g


def gradient_adjoint(g: Tensor) -> Tensor:
    """The transpose of `gradient` (minus the divergence); the differences across the far edge must be zero."""
    out = -g.sum(1, keepdim=True)
    out[:, 0, :, 1:] += g[:, 0, :, :-1]
    out[:, 0, 1:] += g[:, 1, :-1]
    return out


def magnitude(g: Tensor) -> Tensor:
    """Length of the gradient at each pixel, `(B, 1, ny, nx)`."""
    return torch.addcmul(g[:, :1] * g[:, :1], g[:, 1:], g[:, 1:]).sqrt_()


def total_variation(x: Tensor) -> Tensor:
    """`sum |grad x|` of each batch item, `(B,)`."""
    return magnitude(gradient(x)).flatten(1).sum(1)
