"""Running an autoregression forward: a loop over time, compiled; an operator that folds a ``vmap`` into its batch."""

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

__all__ = ["simulate"]


@torch.library.custom_op("ppgen::autoregression", mutates_args=())
def simulate(regression: Tensor, z: Tensor, noise: Tensor, past: Tensor) -> Tensor:
    """Frames (N, H, D) that follow ``past`` (N, L, D) through the states ``z`` (N, H).

    ``regression`` (K, D, L D + 1) acts on the last L frames, latest first, and 1; ``noise`` (N, H, D) is added.
    """
    return torch.from_numpy(_loop(*(a.detach().contiguous().numpy() for a in (regression, z, noise, past))))


@simulate.register_fake
def _shape(regression: Tensor, z: Tensor, noise: Tensor, past: Tensor) -> Tensor:
    return torch.empty_like(noise)


@simulate.register_vmap
def _fold(
    info: Any,  # noqa: ANN401 (torch's)
    in_dims: tuple[int | None, ...],
    regression: Tensor,
    z: Tensor,
    noise: Tensor,
    past: Tensor,
) -> tuple[Tensor, int]:
    """Each draw has states of its own."""
    size = info.batch_size
    inputs = zip((regression, z, noise, past), in_dims, strict=True)
    each = [t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0) for t, dim in inputs]
    each[1] = each[1] + each[0].shape[1] * torch.arange(size)[:, None, None]
    return simulate(*(t.flatten(0, 1) for t in each)).unflatten(0, (size, -1)), 0


@numba.njit(cache=True, nogil=True)
def _loop(regression: np.ndarray, z: np.ndarray, noise: np.ndarray, past: np.ndarray) -> np.ndarray:
    """h_t = A_{z_t} [h_{t-1}; ...; h_{t-L}; 1] + noise_t for each sequence, after the frames ``past``."""
    N, H, D = noise.shape
    L = past.shape[1]
    h = np.empty((N, L + H, D))
    h[:, :L] = past
    for n in range(N):
        for t in range(L, L + H):
            weights = regression[z[n, t - L]]
            for i in range(D):
                total = weights[i, L * D] + noise[n, t - L, i]
                for lag in range(L):
                    for j in range(D):
                        total += weights[i, lag * D + j] * h[n, t - 1 - lag, j]
                h[n, t, i] = total
    return h[:, L:]
