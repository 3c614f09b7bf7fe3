"""Common parts of the Numba kernels: compiling them, running them on threads, and exponentials."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import njit

__all__ = ["KERNEL", "Array", "exp", "has_kernels", "is_eager", "run_tasks"]

Array = np.ndarray

# How every kernel is compiled: once per machine, free of the interpreter lock. Sums may be reordered (that is what
# lets them use vector registers); infinities and NaN keep their meaning. A loop that sums stores nothing: with stores,
# the compiler would choose the order of the sum by whether arrays seem to overlap, and bits would depend on addresses.
KERNEL: dict[str, Any] = {
    "cache": True,
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "reassoc", "nsz", "arcp"},
}
# Below this many multiplications per call, handing work to another thread costs more than it saves.
WORTH_A_THREAD = 200_000

_pool: ThreadPoolExecutor | None = None


@njit(**KERNEL | {"fastmath": {"contract"}})
def exp(x: float) -> float:
    """Exponential of ``x <= 0`` to the last digit; 0 below -708, NaN for NaN.

    A loop over it uses vector registers, which one over ``math.exp`` does not: six times faster.
    """
    y = -708.0 if x < -708.0 else x
    n = np.floor(y * 1.4426950408889634 + 0.5)
    r = (y - n * 0.693145751953125) - n * 1.42860682030941723212e-6  # ln 2 in two parts, the first one exact
    p = 1.0 / 6227020800.0
    p = p * r + 1.0 / 479001600.0
    p = p * r + 1.0 / 39916800.0
    p = p * r + 1.0 / 3628800.0
    p = p * r + 1.0 / 362880.0
    p = p * r + 1.0 / 40320.0
    p = p * r + 1.0 / 5040.0
    p = p * r + 1.0 / 720.0
    p = p * r + 1.0 / 120.0
    p = p * r + 1.0 / 24.0
    p = p * r + 1.0 / 6.0
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    power = np.int64((np.int64(np.int32(n)) + 1023) << 52).view(np.float64)  # 2 ** n, written as bits
    return 0.0 if x < -708.0 else p * power


def is_eager() -> bool:
    """Tell whether values are at hand: no graph is traced or compiled, and no function maps or differentiates.

    What is written by hand is then faster than torch operations, which a compiler would fuse.
    """
    watched = torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is not None
    return not watched and torch.utils._python_dispatch._get_current_dispatch_mode() is None


def has_kernels(t: torch.Tensor) -> bool:
    """Tell whether the kernels can work on the memory of ``t``; torch operations do otherwise."""
    return t.device.type == "cpu"


def run_tasks(function: Callable, tasks: int, work: float, *arguments: Array | int | bool) -> None:
    """Run ``function(start, stop, *arguments)`` over ``range(tasks)``, on as many threads as torch may use.

    Threads of our own rather than Numba's: those abort the process when two Python threads meet in a kernel, or
    after a fork. Results do not depend on the number of threads.
    """
    workers = min(torch.get_num_threads(), tasks)
    if workers < 2 or work < WORTH_A_THREAD:
        function(0, tasks, *arguments)
        return
    share = -(-tasks // min(4 * workers, tasks))
    starts = range(0, tasks, share)
    futures = [_threads().submit(function, start, min(start + share, tasks), *arguments) for start in starts[1:]]
    function(0, share, *arguments)
    for future in futures:
        future.result()


def _threads() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(max_workers=max(torch.get_num_threads(), 1), thread_name_prefix="ppgen")
    return _pool


def _forget_threads() -> None:
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)  # threads do not survive a fork, the pool object does
