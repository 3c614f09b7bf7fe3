"""Sums of exponentials over components in compiled loops, for many rows at once."""

import math

import numpy as np
from numba import njit

from ppgen.messages._compiled import KERNEL, Array, exp

__all__ = ["ROWS", "log_sums"]

ROWS = 256  # whose components stay in the cache


@njit(**KERNEL)
def log_sums(start: int, stop: int, joint: Array, shares: Array, value: Array) -> None:
    """Of each column of ``joint`` (K, n) the log of the sum of exponentials, and the share of each of them in it.

    A task takes `ROWS` columns. Where all entries are -inf, so is the sum, and all shares are zero.
    """
    K, n = joint.shape
    top, total = np.empty(ROWS), np.empty(ROWS)
    for task in range(start, stop):
        first = task * ROWS
        count = min(ROWS, n - first)
        top[:] = -math.inf
        total[:] = 0.0
        for k in range(K):
            for i in range(count):
                x = joint[k, first + i]
                top[i] = x if x > top[i] else top[i]
        for i in range(count):
            top[i] = 0.0 if top[i] == -math.inf else top[i]
        for k in range(K):
            for i in range(count):
                e = exp(joint[k, first + i] - top[i])
                shares[k, first + i] = e
                total[i] += e
        for i in range(count):
            value[first + i] = top[i] + math.log(total[i])
            total[i] = 0.0 if total[i] == 0.0 else 1.0 / total[i]
        for k in range(K):
            for i in range(count):
                shares[k, first + i] *= total[i]
