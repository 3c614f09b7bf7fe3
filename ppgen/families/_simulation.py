"""Running autoregressions forward; compiled, because each step waits for the one before."""

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def simulate(h: np.ndarray, z: np.ndarray, noise: np.ndarray, regression: np.ndarray, begins: np.ndarray) -> None:
    """Fill the frames ``h`` (N, T, D) of each sequence from step ``begins`` (N,) on, through the states ``z`` (N, T).

    ``regression`` (K, D, L D + 1) acts on the last L frames, latest first, and 1; ``noise`` (N, T, D) is added.
    """
    N, T, D = h.shape
    lags = (regression.shape[2] - 1) // D
    for n in range(N):
        for t in range(begins[n], T):
            weights = regression[z[n, t]]
            for i in range(D):
                total = weights[i, lags * D] + noise[n, t, i]
                for lag in range(lags):
                    for j in range(D):
                        total += weights[i, lag * D + j] * h[n, t - 1 - lag, j]
                h[n, t, i] = total
