"""Checkpoints of a run: one file in a folder, written whole or not at all, refused for another fit."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from ppgen.collapsed.base import Local
from ppgen.data.parts import Inputs, each
from ppgen.errors import FileError
from ppgen.families.family import Factor
from ppgen.model import Conjugate
from ppgen.results.fit import Fit
from ppgen.results.posterior import Factors
from ppgen.storage.commit import is_left
from ppgen.storage.folder import read_tensors, write_tensors
from ppgen.storage.lock import LOCK

__all__ = ["Checkpoint", "State", "described"]

STATE = "vb.safetensors"


@final
@dataclass(frozen=True, eq=False)
class State:
    """Everything a variational run goes on from: factors, hyperparameters, held latents per batch, and its record.

    ``local`` has for each batch {observed site: posterior of its held blocks}.
    """

    q: dict[str, Factor]
    hyper: dict[str, Tensor]
    local: tuple[dict[str, Local], ...]
    rows: tuple[dict[str, float], ...] = ()
    converged: bool = False

    @property
    def bound(self) -> float:
        """The last bound, in nats."""
        return self.rows[-1]["elbo"] if self.rows else -float("inf")


@final
class Checkpoint:
    """Where a variational run is saved: the states of its starts, those under way included, and its seed.

    ``settings`` are the options that another run must share to go on from here. Nobody else may write to the folder
    meanwhile (:mod:`ppgen.storage.lock`).
    """

    def __init__(
        self, folder: Path, model: Conjugate, data: Tensor, inputs: Inputs, settings: Mapping[str, object]
    ) -> None:
        self.folder, self.model, self.path = folder, model, folder / STATE
        self.identity = _identity(model, data, inputs, settings)

    def save(self, states: Sequence[State], seed: int) -> None:
        """Replace the checkpoint; the previous one survives a failure."""
        tensors: dict[str, Tensor] = {}
        heads = []
        for number, state in enumerate(states):
            tensors |= _flatten(state, f"{number}/")
            heads.append({"rows": state.rows, "converged": state.converged, "batches": len(state.local)})
        write_tensors(self.path, tensors, {"identity": self.identity, "seed": seed, "states": heads})

    def load(self) -> tuple[list[State], int | None]:
        """States to go on from and the seed of their run; none where nothing was saved."""
        if not self.path.exists():
            names = sorted(path.name for path in self.folder.iterdir())
            strangers = [name for name in names if name != LOCK and not is_left(name, STATE)]
            if strangers:
                raise FileError(
                    f"checkpoint: {self.folder} must be empty or hold a checkpoint; name another folder, it holds "
                    f"{strangers[:3]}"
                )
            return [], None
        try:
            content, tensors = read_tensors(self.path)
            identity, heads, seed = dict(content["identity"]), content["states"], int(content["seed"])
        except (FileError, KeyError, TypeError, ValueError) as error:
            raise FileError(f"checkpoint: {self.folder} cannot be read ({error}); delete it to start anew") from error
        changed = [name for name, value in self.identity.items() if identity.get(name) != value]
        if changed:
            raise FileError(
                f"checkpoint: {self.folder} must hold this fit, but its {', '.join(changed)} differ; "
                "use another folder, or the same model, data and options"
            )
        return [_unflatten(self.model, head, tensors, f"{i}/") for i, head in enumerate(heads)], seed


def described(start: Fit | str) -> str:
    """What tells one start from another in the identity of a run: of an earlier fit a digest of all it holds."""
    if not isinstance(start, Fit):
        return str(start)
    posterior = start.posterior
    if isinstance(posterior, Factors):
        held = {f"{name}/{k}": v for name, factor in posterior.factors.items() for k, v in factor.eta.items()}
        held |= posterior.points
    else:
        held = dict(posterior.sites)
    total = hashlib.sha256(type(posterior).__name__.encode())
    for name, value in {**held, **start.model.state_dict(prefix="model/")}.items():
        total.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        total.update(value.detach().cpu().contiguous().numpy().tobytes())
    return f"fit {total.hexdigest()}"


def _identity(model: Conjugate, data: Tensor, inputs: Inputs, settings: Mapping[str, object]) -> dict[str, str]:
    parts = {
        "model": repr(_plain(model.config)) + type(model).__name__,
        "data": _digest(data),
        **({} if inputs is None else {"inputs": repr(each(inputs, _digest))}),
        "options": repr(dict(settings)),
        "torch": torch.__version__,
    }
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in parts.items()}


def _digest(data: Tensor) -> str:
    return hashlib.sha256(data.contiguous().numpy().tobytes()).hexdigest() + str(tuple(data.shape))


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
    for i, sites in enumerate(() if state.converged else state.local):
        for site, local in sites.items():
            for block, eta in local.items():
                flat |= {f"{prefix}local/{i}/{site}/{block}/{k}": v for k, v in eta.items()}
    return flat


def _unflatten(model: Conjugate, head: dict[str, Any], tensors: dict[str, Tensor], prefix: str) -> State:
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    q = {}
    for name, factor in model.natural_prior().items():
        q[name] = Factor(factor.family, {k: own[f"q/{name}/{k}"] for k in factor.eta})
    hyper = {name.removeprefix("hyper/"): value for name, value in own.items() if name.startswith("hyper/")}
    local: list[dict[str, Local]] = [{} for _ in range(head["batches"])]
    for name, value in own.items():
        if name.startswith("local/"):
            _, i, site, block, k = name.split("/")
            local[int(i)].setdefault(site, {}).setdefault(block, {})[k] = value
    return State(q, hyper, tuple(local), tuple(head["rows"]), head["converged"])
