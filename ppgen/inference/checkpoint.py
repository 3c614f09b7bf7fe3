"""Checkpoints of a run: safetensors and JSON in one folder, written whole or not at all, refused for another fit."""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import safetensors.torch
import torch
from torch import Tensor

from ppgen.errors import FileError
from ppgen.families.completion import Completion
from ppgen.families.family import Factor
from ppgen.model import Conjugate
from ppgen.results.commit import writing

__all__ = ["Checkpoint", "State"]

FORMAT = 1
STATE, MANIFEST = "state.safetensors", "manifest.json"


@final
@dataclass(frozen=True, eq=False)
class State:
    """Everything a variational run goes on from: factors, hyperparameters, latent frames per batch, and its record."""

    q: dict[str, Factor]
    hyper: dict[str, Tensor]
    completions: tuple[Completion | None, ...]
    rows: tuple[dict[str, float], ...] = ()
    converged: bool = False

    @property
    def bound(self) -> float:
        """The last bound, in nats."""
        return self.rows[-1]["elbo"] if self.rows else -float("inf")


@final
class Checkpoint:
    """Where a variational run is saved: the states of its starts, those under way included, and its seed.

    ``settings`` are the options that another run must share to go on from here.
    """

    def __init__(self, folder: Path, model: Conjugate, data: Tensor, settings: Mapping[str, object]) -> None:
        self.folder, self.model = folder, model
        self.identity = _identity(model, data, settings)

    def save(self, states: Sequence[State], seed: int) -> None:
        """Replace the checkpoint; the previous one survives a failure."""
        tensors: dict[str, Tensor] = {}
        heads = []
        for number, state in enumerate(states):
            tensors |= _flatten(state, f"{number}/")
            heads.append({"rows": state.rows, "converged": state.converged, "batches": len(state.completions)})
        manifest = {"format": FORMAT, "identity": self.identity, "seed": seed, "states": heads}
        blob = safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()})
        manifest["sha256"] = hashlib.sha256(blob).hexdigest()
        with writing(self.folder):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            fresh = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}-", dir=self.folder.parent))
            try:
                _write(fresh / STATE, blob)
                _write(fresh / MANIFEST, json.dumps(manifest).encode())
                self._swap(fresh)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)

    def load(self) -> tuple[list[State], int | None]:
        """States to go on from and the seed of their run; none where nothing was saved."""
        previous = self.folder.with_name(f".{self.folder.name}.old")
        if not self.folder.exists() and previous.exists():
            previous.rename(self.folder)  # a run was killed between the two renames of a save
        if not self.folder.exists() or (self.folder.is_dir() and not any(self.folder.iterdir())):
            return [], None
        manifest, tensors = self._read()
        if manifest["identity"] != self.identity:
            changed = [name for name in self.identity if manifest["identity"].get(name) != self.identity[name]]
            raise FileError(
                f"checkpoint: {self.folder} must hold this fit, but its {', '.join(changed)} differ; "
                "use another folder, or the same model, data and options"
            )
        states = [_unflatten(self.model, head, tensors, f"{i}/") for i, head in enumerate(manifest["states"])]
        return states, int(manifest["seed"])

    def _swap(self, fresh: Path) -> None:
        old = self.folder.with_name(f".{self.folder.name}.old")
        if self.folder.exists():
            if not (self.folder / MANIFEST).exists() and any(self.folder.iterdir()):
                raise FileError(f"checkpoint: {self.folder} holds other files; name an empty or new folder")
            shutil.rmtree(old, ignore_errors=True)
            self.folder.rename(old)
        fresh.rename(self.folder)
        shutil.rmtree(old, ignore_errors=True)

    def _read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        if not self.folder.is_dir() or not any((self.folder / name).exists() for name in (STATE, MANIFEST)):
            raise FileError(f"checkpoint: {self.folder} must be empty or hold a checkpoint; name another folder")
        try:
            manifest = json.loads((self.folder / MANIFEST).read_text())
            blob = (self.folder / STATE).read_bytes()
            if manifest["format"] != FORMAT or manifest["sha256"] != hashlib.sha256(blob).hexdigest():
                raise ValueError("format or checksum")
            return manifest, safetensors.torch.load(blob)
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise FileError(f"checkpoint: {self.folder} cannot be read ({error}); delete it to start anew") from error


def _identity(model: Conjugate, data: Tensor, settings: Mapping[str, object]) -> dict[str, str]:
    parts = {
        "model": repr(_plain(model.config)) + type(model).__name__,
        "data": hashlib.sha256(data.contiguous().numpy().tobytes()).hexdigest() + str(tuple(data.shape)),
        "options": repr(dict(settings)),
        "torch": torch.__version__,
    }
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in parts.items()}


def _plain(value: Any) -> Any:  # noqa: ANN401 (a model's config)
    """A configuration as nested plain values, for comparison."""
    if hasattr(value, "config"):
        return type(value).__name__, _plain(value.config)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value.tolist() if isinstance(value, Tensor) else value


def _flatten(state: State, prefix: str) -> dict[str, Tensor]:
    flat = {f"{prefix}q/{name}/{k}": v for name, factor in state.q.items() for k, v in factor.eta.items()}
    flat |= {f"{prefix}hyper/{name}": value for name, value in state.hyper.items()}
    for i, completion in enumerate(() if state.converged else state.completions):
        if completion is not None:
            for name in (f.name for f in dataclasses.fields(completion)):
                flat[f"{prefix}completion/{i}/{name}"] = torch.as_tensor(getattr(completion, name))
    return flat


def _unflatten(model: Conjugate, head: dict[str, Any], tensors: dict[str, Tensor], prefix: str) -> State:
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    q = {}
    for name, factor in model.natural_prior().items():
        q[name] = Factor(factor.family, {k: own[f"q/{name}/{k}"] for k in factor.eta})
    hyper = {name.removeprefix("hyper/"): value for name, value in own.items() if name.startswith("hyper/")}
    completions = tuple(_completion(own, f"completion/{i}/") for i in range(head["batches"]))
    return State(q, hyper, completions, tuple(head["rows"]), head["converged"])


def _completion(own: dict[str, Tensor], prefix: str) -> Completion | None:
    fields = {name.removeprefix(prefix): value for name, value in own.items() if name.startswith(prefix)}
    if not fields:
        return None
    return Completion(**{k: bool(v) if k == "complete" else v for k, v in fields.items()})  # type: ignore[arg-type]


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
