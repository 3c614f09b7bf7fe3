"""State of a variational run, and its form in a checkpoint."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from ppgen.collapsed.base import Local
from ppgen.data.parts import Inputs, each
from ppgen.families.family import Factor
from ppgen.model import Conjugate
from ppgen.storage.checkpoint import Checkpoint

__all__ = ["Saved", "State"]

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
class Saved:
    """The states of a run in its checkpoint, those under way included, and its seed.

    ``settings`` are the options that another run must share to go on from here.
    """

    def __init__(
        self, folder: Path, model: Conjugate, data: Tensor, inputs: Inputs, settings: Mapping[str, object]
    ) -> None:
        self.model, self.checkpoint = model, Checkpoint("vb", folder / STATE, _identity(model, data, inputs, settings))

    def save(self, states: Sequence[State], seed: int) -> None:
        """Replace the checkpoint; the previous one survives a failure."""
        tensors: dict[str, Tensor] = {}
        heads = []
        for number, state in enumerate(states):
            tensors |= _flatten(state, f"{number}/")
            heads.append({"rows": state.rows, "converged": state.converged, "batches": len(state.local)})
        self.checkpoint.save(tensors, {"seed": seed, "states": heads})

    def load(self) -> tuple[list[State], int | None]:
        """States to go on from and the seed of their run; none where nothing was saved."""
        found = self.checkpoint.load()
        if found is None:
            return [], None
        content, tensors = found
        try:
            heads, seed = content["states"], int(content["seed"])
        except (KeyError, TypeError, ValueError) as error:
            raise self.checkpoint.unreadable(error) from error
        return [_unflatten(self.model, head, tensors, f"{i}/") for i, head in enumerate(heads)], seed


def _identity(model: Conjugate, data: Tensor, inputs: Inputs, settings: Mapping[str, object]) -> dict[str, str]:
    return {
        "model": repr(_plain(model.config)) + type(model).__name__,
        "data": _digest(data),
        **({} if inputs is None else {"inputs": repr(each(inputs, _digest))}),
        "options": repr(dict(settings)),
        "torch": torch.__version__,
    }


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
