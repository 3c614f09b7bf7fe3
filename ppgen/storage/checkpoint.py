"""The checkpoint of a run: one file in a folder, written whole or not at all, and refused for another run."""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, final

from torch import Tensor

from ppgen.errors import FileError
from ppgen.storage.commit import is_left
from ppgen.storage.folder import read_tensors, write_tensors
from ppgen.storage.lock import LOCK

__all__ = ["Checkpoint"]


@final
class Checkpoint:
    """A file in the folder of a run, which keeps others out (:mod:`ppgen.storage.lock`).

    Parameters
    ----------
    who : the engine.
    path : path of the file.
    identity : {what it is: its text or bytes}. A run goes on from a checkpoint only if all of these are equal; the file
        holds their digests.
    beside : endings of the names of other files that such a run writes there.
    """

    def __init__(self, who: str, path: Path, identity: Mapping[str, str | bytes], beside: Collection[str] = ()) -> None:
        self.who, self.path, self.folder, self.beside = who, path, path.parent, tuple(beside)
        self.identity = {name: _digest(part) for name, part in identity.items()}

    def save(self, tensors: Mapping[str, Tensor], content: Mapping[str, Any] | None = None) -> None:
        """Replace the file by named tensors and JSON ``content``.

        Raises
        ------
        FileError : it could not be written, as on a full disk; the one before it is whole.
        """
        write_tensors(self.path, tensors, {**(content or {}), "identity": self.identity})

    def load(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Read content and tensors to go on from; None where nothing was saved.

        Raises
        ------
        FileError : the file is damaged or that of another run (says what differs), or the folder holds other files.
        """
        if not self.path.exists():
            self._refuse_strangers()
            return None
        try:
            content, tensors = read_tensors(self.path)
            found = dict(content["identity"])
        except (FileError, KeyError, TypeError, ValueError) as error:
            raise self.unreadable(error) from error
        changed = [name for name, digest in self.identity.items() if found.get(name) != digest]
        if changed:
            raise FileError(
                f"{self.who}: checkpoint {self.folder} must hold this run, but its {', '.join(changed)} differ; use "
                "another folder, or the same model, data and options"
            )
        return content, tensors

    def unreadable(self, error: Exception) -> FileError:
        """Say that the file holds something else than a checkpoint."""
        return FileError(f"{self.who}: checkpoint {self.folder} cannot be read ({error}); delete it to start anew")

    def _refuse_strangers(self) -> None:
        names = sorted(path.name for path in self.folder.iterdir()) if self.folder.exists() else []
        own = [name == LOCK or is_left(name, self.path.name) or name.endswith(self.beside) for name in names]
        strangers = [name for name, mine in zip(names, own, strict=True) if not mine]
        if strangers:
            raise FileError(
                f"{self.who}: checkpoint {self.folder} must be empty or hold a checkpoint, got {strangers[:3]}; name "
                "another folder"
            )


def _digest(part: str | bytes) -> str:
    return hashlib.sha256(part.encode() if isinstance(part, str) else part).hexdigest()
