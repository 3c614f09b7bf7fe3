"""Running an autoregression forward: a loop over time, compiled."""

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def simulate(regression: np.ndarray, z: np.ndarray, noise: np.ndarray, past: np.ndarray) -> np.ndarray:
    """Frames (N, H, D) that follow ``past`` (N, L, D) through the states ``z`` (N, H).

    ``regression`` (K, D, L D + 1) acts on the last L frames, latest first, and 1; ``noise`` (N, H, D) is added.
    """
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
