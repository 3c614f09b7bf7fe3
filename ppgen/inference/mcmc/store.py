"""Arrays of draws as they come, in memory or on disk."""

import contextlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from ppgen.errors import FileError

__all__ = ["DRAWS_SUFFIX", "MEMORY", "Arrays"]

MEMORY = 2 * 2**30  # bytes of draws that are kept in memory
DRAWS_SUFFIX = ".bin"  # how names of files of draws end


@final
class Arrays:
    """Gives out float64 arrays: in memory while they fit in ``memory`` bytes, then in files.

    In a ``folder`` all are files, which a later run finds again; else files vanish when nobody uses them any more.
    """

    def __init__(self, folder: Path | None = None, memory: int = MEMORY) -> None:
        self.folder, self.left = folder, memory
        self.mapped: list[np.memmap] = []

    def make(self, name: str, shape: Sequence[int]) -> Tensor:
        """An array whose content is to be written before it is read."""
        size = 8 * int(np.prod(shape))
        if self.folder is not None:
            return self._map(self.folder / f"{name}{DRAWS_SUFFIX}", shape, size)
        self.left -= size
        if self.left >= 0:
            return torch.empty(tuple(shape), dtype=torch.float64)
        handle, path = tempfile.mkstemp(prefix="ppgen-")
        os.close(handle)
        found = self._map(Path(path), shape, size)
        with contextlib.suppress(OSError):  # where an open file cannot be removed it stays in the temporary folder
            Path(path).unlink()
        return found

    def flush(self) -> None:
        """See that everything written is on disk."""
        for array in self.mapped:
            array.flush()

    def _map(self, path: Path, shape: Sequence[int], size: int) -> Tensor:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() or path.stat().st_size != size:
                _allocate(path, size)
            array = np.memmap(path, dtype=np.float64, mode="r+", shape=tuple(shape))
        except OSError as error:
            raise FileError(
                f"mcmc: {path.parent} must have room for {size / 2**30:.2g} GB of draws, got: {error.strerror}; free "
                "some space, or ask for fewer draws or chains"
            ) from error
        self.mapped.append(array)
        return torch.from_numpy(array)


def _allocate(path: Path, size: int) -> None:
    """Claim the space now: writing to a mapped file on a full disk would kill the process."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate") and size:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        block = bytes(1 << 20)
        for start in range(0, size, len(block)):
            file.write(block[: size - start])
