"""Small matrix products in compiled loops, as dot products of rows: two to three times faster than sums of rows."""

from numba import njit

from ppgen.messages._compiled import KERNEL, Array

__all__ = ["add_times", "times_turned", "turn"]


@njit(**KERNEL)
def turn(A: Array, out: Array) -> None:
    """Out = A'."""
    for i in range(A.shape[0]):
        for j in range(A.shape[1]):
            out[j, i] = A[i, j]


@njit(**KERNEL)
def times_turned(A: Array, B: Array, out: Array) -> None:
    """Out = A B'."""
    for i in range(A.shape[0]):
        for j in range(B.shape[0]):
            total = 0.0
            for k in range(A.shape[1]):
                total += A[i, k] * B[j, k]
            out[i, j] = total


@njit(**KERNEL)
def add_times(A: Array, v: Array, sign: float, out: Array) -> None:
    """Out += sign A v."""
    for i in range(A.shape[0]):
        total = 0.0
        for k in range(A.shape[1]):
            total += A[i, k] * v[k]
        out[i] += sign * total
