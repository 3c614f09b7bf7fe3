"""Sums of exponentials over components in compiled loops, for many rows at once."""

import math

import numpy as np
from numba import njit

from ppgen.messages._compiled import KERNEL, Array, exp

__all__ = ["ROWS_AT_ONCE", "log_sums"]

ROWS_AT_ONCE = 256  # whose components stay in the cache


@njit(**KERNEL)
def log_sums(start: int, stop: int, joint: Array, shares: Array, value: Array) -> None:
    """The log of the sum of exponentials of each column of ``joint`` (K, n), and the share of each entry in it.

    A task takes `ROWS_AT_ONCE` columns. Where all entries are -inf, so is the sum, and all shares are zero.
    """
    K, n = joint.shape
    top, total = np.empty(ROWS_AT_ONCE), np.empty(ROWS_AT_ONCE)
    for task in range(start, stop):
        first = task * ROWS_AT_ONCE
        count = min(ROWS_AT_ONCE, n - first)
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
