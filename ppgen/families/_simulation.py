"""Running autoregressions forward; compiled, because each step waits for the one before."""

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def simulate(regression: np.ndarray, z: np.ndarray, noise: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Run the autoregression forward from the frames ``start`` (N, L, D); (N, H, D)."""
    N, H, D = noise.shape
    L = start.shape[1]
    h = np.empty((N, L + H, D))
    h[:, :L] = start
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
