"""Fits on disk: a folder of ``manifest.json``, ``tensors.safetensors`` and ``history.csv``.

Nothing in a folder is ever executed or imported. The manifest names ppgen's own classes, which are looked up among
those ppgen has; every tensor and file carries its SHA-256, and so does the manifest itself: a flipped bit, a truncated
file and a foreign file are refused in words. Whatever kills the process, a folder holds the old fit or the new one
(:mod:`ppgen.storage.commit`).
"""

import hashlib
import io
import json
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ppgen.errors import FileError
from ppgen.storage.commit import create, is_own_name, own_name, replace, write_whole, writing
from ppgen.storage.lock import held

__all__ = ["as_path", "read_folder", "read_tensors", "versions", "write_folder", "write_tensors"]

FORMAT = 1
MANIFEST, TENSORS, HISTORY = "manifest.json", "tensors.safetensors", "history.csv"
PARTS = (TENSORS, HISTORY)
MANIFEST_LIMIT = 64 * 2**20
LIBRARIES = ("torch", "pyro-ppl", "numpy", "safetensors")


def write_folder(
    folder: str | Path,
    content: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    history: pd.DataFrame,
    *,
    overwrite: bool = False,
) -> None:
    """Write one fit: JSON ``content``, named tensors and a table.

    With ``overwrite`` the files of a fit that is there are replaced; what else lies in its folder stays. A link is
    followed.

    Raises
    ------
    FileError : ``folder`` holds something, or with ``overwrite`` something that is no whole fit of ours.
    """
    target = Path(os.path.realpath(as_path("save", folder)))
    old = _replaced(target, overwrite)
    payload = {TENSORS: _pack(tensors), HISTORY: history.to_csv(index=False, na_rep="nan").encode()}
    files = payload if old is None else {own_name(name, _digest(data)): data for name, data in payload.items()}
    manifest = {
        "format": FORMAT,
        "versions": versions(),
        "files": {name: {"bytes": len(data), "sha256": _digest(data)} for name, data in files.items()},
        "tensors": {name: _describe(tensor) for name, tensor in tensors.items()},
        "history": {str(name): str(dtype) for name, dtype in history.dtypes.items()},
        "content": dict(content),
    }
    sealed = _seal(manifest)
    with writing(target):
        if old is None:
            create(target, {**files, MANIFEST: sealed})
        else:
            with held(target, "save"):
                replace(target, files, (MANIFEST, sealed), old)


def as_path(who: str, folder: object) -> Path:
    """The path that was given; raises `FileError` if it is not a path."""
    if not isinstance(folder, str | os.PathLike) or not str(folder):
        raise FileError(f"{who}: the folder must be a path, got {folder!r}; pass its name")
    return Path(folder)


def read_folder(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor], pd.DataFrame]:
    """Read what `write_folder` wrote: content, tensors, history. Raises `FileError` for anything else."""
    path = as_path("load", folder)
    if not path.is_dir():
        raise FileError(f"load: {path} must be a folder written by Fit.save, got {_kind(path)}")
    manifest = _open_manifest(path)
    names = _own_files(manifest, path)
    payload = {part: _read_checked(path / name, manifest["files"][name]) for part, name in names.items()}
    tensors = _unpack(payload[TENSORS], path / names[TENSORS])
    _check_tensors(tensors, manifest["tensors"], path / names[TENSORS])
    return manifest["content"], tensors, _read_history(payload[HISTORY], manifest["history"], path / names[HISTORY])


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    """Write one file of named tensors and JSON ``content``, all at once: a crash leaves the old file or the new one."""
    target = Path(path)
    sealed = {"tensors": {name: _describe(tensor) for name, tensor in tensors.items()}, "content": dict(content)}
    data = _pack(tensors, {"ppgen": _seal({"format": FORMAT, **sealed}).decode()})
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, data)


def read_tensors(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write_tensors` wrote: content and tensors. Raises `FileError` for anything else."""
    target = Path(path)
    data = _read_bytes(target)
    tensors = _unpack(data, target)
    with safetensors.safe_open(target, framework="pt") as file:
        sealed = (file.metadata() or {}).get("ppgen", "")
    manifest = _open_seal(sealed.encode(), target, ("tensors", "content"))
    _check_tensors(tensors, manifest["tensors"], target)
    return manifest["content"], tensors


def versions() -> dict[str, str]:
    """Versions of Python, ppgen and the libraries whose arithmetic a fit depends on."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in ("ppgen", *LIBRARIES)}


def _digest(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def _describe(tensor: Tensor) -> dict[str, Any]:
    plain = tensor.detach().cpu().contiguous()
    # torch.bool and half types have no NumPy buffer of their own: hash the bytes.
    data = plain.reshape(-1).view(torch.uint8).numpy().data if plain.numel() else b""
    return {"shape": list(plain.shape), "dtype": str(plain.dtype), "sha256": _digest(data)}


def _pack(tensors: Mapping[str, Tensor], extra: dict[str, str] | None = None) -> bytes:
    # Clones: safetensors refuses tensors that share memory, which expanded parameters do.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return safetensors.torch.save(plain, metadata=extra)


def _unpack(data: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise FileError(f"load: {path} must be a safetensors file, got something else ({error})") from error


def _check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Any], path: Path) -> None:
    if set(tensors) != set(expected):
        odd = sorted(set(tensors) ^ set(expected))[:5]
        raise FileError(f"load: {path} must hold the tensors its manifest names, got a difference in {odd}; save again")
    for name, tensor in tensors.items():
        if _describe(tensor) != expected[name]:
            raise FileError(f"load: tensor {name!r} of {path} was changed after it was saved; restore the file")


def _seal(manifest: Mapping[str, Any]) -> bytes:
    """JSON with its own digest: the manifest is protected against flipped bits like everything it lists."""
    try:
        plain = json.loads(json.dumps(manifest))
    except (TypeError, ValueError) as error:
        raise FileError(f"save: attributes of a fit must be JSON values, got one that is not ({error})") from error
    return json.dumps({"sha256": _digest(_canonical(plain)), "manifest": plain}, indent=1).encode()


def _canonical(plain: Any) -> bytes:  # noqa: ANN401 (any JSON value)
    return json.dumps(plain, sort_keys=True).encode()


def _open_seal(data: bytes, path: Path, parts: tuple[str, ...]) -> dict[str, Any]:
    """The manifest under a seal, whose ``parts`` are all there and dicts."""
    try:
        sealed = json.loads(data)
        manifest, digest = sealed["manifest"], sealed["sha256"]
        version = manifest["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileError(f"load: {path} must be written by ppgen, got something else; save the fit again") from error
    if version != FORMAT:
        raise FileError(
            f"load: {path} must have format {FORMAT}, got {version!r}; read it with the ppgen that wrote it"
        )
    if _digest(_canonical(manifest)) != digest:
        raise FileError(f"load: {path} was changed after it was saved (its checksum differs); restore the file")
    if not all(isinstance(manifest.get(part), dict) for part in parts):
        raise FileError(f"load: {path} must hold {', '.join(parts)}, got {sorted(manifest)[:9]}; save the fit again")
    return manifest


def _open_manifest(folder: Path) -> dict[str, Any]:
    data = _read_bytes(folder / MANIFEST, MANIFEST_LIMIT)
    return _open_seal(data, folder / MANIFEST, ("files", "tensors", "history", "content"))


def _read_checked(path: Path, expected: Mapping[str, Any]) -> bytes:
    data = _read_bytes(path)
    if len(data) != expected.get("bytes"):
        size = expected.get("bytes")
        raise FileError(f"load: {path} must have {size} bytes, got {len(data)}; it is truncated or replaced")
    if _digest(data) != expected.get("sha256"):
        raise FileError(f"load: {path} was changed after it was saved (its checksum differs); restore the file")
    return data


def _read_bytes(path: Path, limit: int | None = None) -> bytes:
    if path.is_symlink() or not path.is_file():
        raise FileError(f"load: {path} must be a file written by ppgen, got {_kind(path)}")
    if limit is not None and path.stat().st_size > limit:
        raise FileError(
            f"load: {path} must be under {limit} bytes, got {path.stat().st_size}; it is not a manifest of ppgen"
        )
    return path.read_bytes()


def _read_history(data: bytes, dtypes: Mapping[str, str], path: Path) -> pd.DataFrame:
    """Parse cells with Python's own float, which gives back the bits that were written."""
    if not dtypes:
        return pd.DataFrame()
    try:
        cells = pd.read_csv(io.BytesIO(data), dtype=str, keep_default_na=False)
        return pd.DataFrame({name: _parsed(cells[name], dtype) for name, dtype in dtypes.items()})
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(f"load: {path} must be the table its manifest describes, got something else") from error


def _parsed(cells: pd.Series, dtype: str) -> pd.Series:
    if dtype == "bool":
        return cells == "True"
    if dtype.startswith("float"):
        return cells.map(float).astype(dtype)
    return cells.map(int).astype(dtype) if dtype.startswith(("int", "uint")) else cells


def _kind(path: Path) -> str:
    if path.is_symlink():
        return "a link"
    return "a file" if path.is_file() else "a folder" if path.is_dir() else "nothing there"


def _own_files(manifest: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """The names of the tensors and the table: their plain ones or those they have beside older files."""
    found = {part: [name for name in manifest["files"] if name == part or is_own_name(name, part)] for part in PARTS}
    if len(manifest["files"]) != len(PARTS) or any(len(names) != 1 for names in found.values()):
        raise FileError(
            f"load: {folder / MANIFEST} must name {TENSORS} and {HISTORY}, got {sorted(manifest['files'])[:5]}"
        )
    return {part: names[0] for part, names in found.items()}


def _replaced(target: Path, overwrite: bool) -> list[str] | None:
    """The files of the fit that is to be replaced; None where there is nothing yet."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    if not (overwrite and target.is_dir()):
        advice = "give a new folder" if overwrite else "give a new folder, or overwrite=True to replace a fit"
        raise FileError(f"save: {target} must not exist or be empty, got {_kind(target)}; {advice}")
    try:
        return list(_own_files(_open_manifest(target), target).values())
    except FileError as error:
        raise FileError(
            f"save: overwrite=True replaces a whole fit, but {target} holds none ({error}); give a new folder, "
            "or delete this one yourself"
        ) from error
