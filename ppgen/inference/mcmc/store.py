"""Arrays of draws as they come, in memory or on disk; and the checkpoint of a chain sampler."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ppgen.errors import FileError
from ppgen.storage.lock import LOCK

__all__ = ["MEMORY", "Arrays", "Saved"]

MEMORY = 2 * 2**30  # bytes of draws that are kept in memory
FORMAT = "ppgen-mcmc-1"
STATE = "state.safetensors"


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
            return self._map(self.folder / f"{name}.bin", shape, size)
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


@final
class Saved:
    """The state of a run in a folder, replaced as a whole; ``identity`` is what another run must share to go on."""

    def __init__(self, folder: Path, identity: Mapping[str, str]) -> None:
        self.path, self.identity = folder / STATE, dict(identity)
        if folder.exists() and any(folder.iterdir()) and not self.path.exists() and not _own(folder):
            raise FileError(f"mcmc: checkpoint {folder} must be empty or hold a checkpoint; name another folder")

    def save(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the state; the previous one survives a failure.

        Raises
        ------
        FileError : it could not be written, as on a full disk.
        """
        content = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        notes = {"format": FORMAT, "identity": json.dumps(self.identity), "sha256": _digest(content)}
        blob = safetensors.torch.save(content, notes)
        fresh = self.path.with_suffix(".new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with fresh.open("wb") as file:
                file.write(blob)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise FileError(
                f"mcmc: the checkpoint {self.path.parent} must be written, got: {error.strerror}; the one before it is "
                "whole, free some space and run again to go on from there"
            ) from error

    def load(self) -> dict[str, Tensor] | None:
        """The state to go on from; None where there is none.

        Raises
        ------
        FileError : it is damaged, or that of another run (says what differs).
        """
        if not self.path.exists():
            return None
        try:
            with safetensors.safe_open(self.path, "pt") as file:
                notes, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if notes.get("format") != FORMAT or notes["sha256"] != _digest(tensors):
                raise ValueError("format or checksum")
            found = json.loads(notes["identity"])
        except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
            raise FileError(
                f"mcmc: checkpoint {self.path.parent} cannot be read ({error}); delete it to start anew"
            ) from error
        changed = [name for name, value in self.identity.items() if found.get(name) != value]
        if changed:
            raise FileError(
                f"mcmc: checkpoint {self.path.parent} must hold this run, but its {', '.join(changed)} differ; use "
                "another folder, or the same model, data and options"
            )
        return tensors


def _own(folder: Path) -> bool:
    """Whether the folder holds only what a run leaves that was killed before its first checkpoint."""
    return all(path.suffix in {".bin", ".new"} or path.name == LOCK for path in folder.iterdir())


def _allocate(path: Path, size: int) -> None:
    """Claim the space now: writing to a mapped file on a full disk would kill the process."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate") and size:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        block = bytes(1 << 20)
        for start in range(0, size, len(block)):
            file.write(block[: size - start])


def _digest(tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        total.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        total.update(value.numpy().tobytes())
    return total.hexdigest()
