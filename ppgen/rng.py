"""Private random streams: a fit draws from its own seed and leaves every global generator as it was."""

import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["private_stream"]


@contextmanager
def private_stream(random_seed: int | None) -> Iterator[int]:
    """Seed torch, NumPy and Python inside the block; restore all three on exit, also after an error.

    ``random_seed=None`` draws a fresh seed. Yields the seed in use, so that it can be recorded.
    """
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
