"""Private random streams: a fit draws from its own seed and leaves every global generator as it was."""

import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral

import numpy as np
import torch

from ppgen.errors import DataError

__all__ = ["private_stream", "seed_device"]

LARGEST_SEED = 2**53  # integers below are exact as JSON and as float64


@contextmanager
def private_stream(random_seed: int | None) -> Iterator[int]:
    """Seed torch, NumPy and Python inside the block; restore all three on exit, also after an error.

    ``random_seed=None`` draws a fresh seed. Yields the seed in use, so that it can be recorded.

    Raises
    ------
    DataError : a seed that is not a whole number from 0 to 2**53.
    """
    whole = isinstance(random_seed, Integral) and not isinstance(random_seed, bool)
    if random_seed is not None and not (whole and 0 <= random_seed < LARGEST_SEED):
        raise DataError(
            f"random_seed must be a whole number from 0 to 2**53, got {random_seed!r}; pass another, or None"
        )
    seed = secrets.randbits(31) if random_seed is None else int(random_seed)
    saved_numpy, saved_python = np.random.get_state(), random.getstate()  # noqa: NPY002 (what is kept apart)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        try:
            yield seed
        finally:
            np.random.set_state(saved_numpy)  # noqa: NPY002
            random.setstate(saved_python)


def seed_device(number: int, device: torch.device) -> None:
    """Seed the generator that a device draws from."""
    if device.type == "cuda":
        torch.cuda.manual_seed(number)
    else:
        torch.default_generator.manual_seed(number)
