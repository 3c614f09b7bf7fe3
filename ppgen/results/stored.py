"""A fit as plain content and named tensors, and back."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ppgen.errors import FileError, FitError
from ppgen.model import Conjugate, Factor, Model
from ppgen.programs.memory import memory, remember
from ppgen.results.posterior import Draws, Factors
from ppgen.results.rebuild import Given, describe, program_state, rebuild
from ppgen.storage.budget import within_budget

if TYPE_CHECKING:
    from ppgen.results.fit import Fit

__all__ = ["describe_fit", "restore_parts"]

log = logging.getLogger(__name__)


def describe_fit(fit: "Fit") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """JSON content and named tensors that hold everything of ``fit`` but its history."""
    description, values = describe(fit.model)
    if description["arguments"] is None:
        log.warning(
            "save: %s has no config, so that it is opened with load(folder, model=an instance of it) only",
            description["class"],
        )
    tensors = {f"config/{key}": value for key, value in values.items()}
    tensors |= {f"model/{key}": value.detach() for key, value in program_state(fit.model).items()}
    known = memory(fit.model)
    tensors |= {f"params/{name}": value for name, value in known.params.items()}
    tensors |= {f"guide_params/{name}": value for name, value in known.guide_params.items()}
    content = {
        "model": description,
        "posterior": _store_posterior(fit.posterior, tensors),
        "labels": {dim: _store_labels(dim, labels, tensors) for dim, labels in fit.labels.items()},
        "attrs": dict(fit.attrs),
        "memory": {
            "data": known.data,
            "inputs": list(known.inputs),
            "params": list(known.params),
            "of_rows": list(known.of_rows),
            "guide": _kind(fit.model),
            "guide_params": list(known.guide_params),
        },
    }
    return content, tensors


def restore_parts(
    content: Mapping[str, Any], tensors: Mapping[str, Tensor], own: Given
) -> tuple[Model, Factors | Draws, dict[str, Any], dict[str, np.ndarray]]:
    """Model, posterior, attributes and labels of what `describe_fit` described."""
    try:
        with within_budget(tensors):
            model = rebuild(content["model"], tensors, own)
            _load_state(model, tensors)
            posterior = _restore_posterior(content["posterior"], tensors, model)
            _restore_memory(model, content.get("memory", {"data": None, "params": []}), tensors)  # once there was none
        labels = {dim: _restore_labels(dim, kind, tensors) for dim, kind in content["labels"].items()}
        return model, posterior, dict(content["attrs"]), labels
    except (KeyError, AttributeError, TypeError) as error:
        raise FileError(f"load: the folder must hold a fit that ppgen saved, something is missing ({error})") from error


def _kind(model: Model) -> str:
    """Whose guide a fitted model remembers: the model's own, one from elsewhere, or none."""
    guide = memory(model).guide
    if guide is None:
        return "none"
    if guide == model.guide:
        return "model"
    log.warning(
        "save: the guide of %s is not its own and is not saved, so that the loaded fit answers for no rows; write it "
        "as the model's method `guide`",
        type(model).__name__,
    )
    return "other"


def _restore_memory(model: Model, known: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    remember(
        model,
        data=known["data"],
        inputs=tuple(known.get("inputs", ())),
        params={name: tensors[f"params/{name}"] for name in known["params"]},
        of_rows=tuple(known.get("of_rows", ())),
        guide={"model": model.guide, "other": lost_guide}.get(known.get("guide", "none")),
        guide_params={name: tensors[f"guide_params/{name}"] for name in known.get("guide_params", ())},
    )


def lost_guide(*_: object, **__: object) -> None:
    """Stands for a guide that is not part of a saved fit."""
    raise FitError(
        "load: rows own latents that only the guide of the fit knew, and it was not saved, since it is not a method "
        "of the model; write it as the model's `guide`, fit and save again"
    )


def _load_state(model: Model, tensors: Mapping[str, Tensor]) -> None:
    """Parameters of the model itself, each of its own type.

    What a guide made up lazily is not part of a rebuilt model, nor needed.
    """
    own = program_state(model)
    state = {key: tensors[f"model/{key}"] for key in own}
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise FileError(
                f"load: {key} of {type(model).__name__} must have shape {tuple(own[key].shape)}, "
                f"got {tuple(value.shape)}"
            )
    for key, value in state.items():
        own[key].data = value.to(own[key].device, copy=True)  # in the type that it was saved in


def _store_posterior(posterior: Factors | Draws, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Note names in order and put the tensors under them."""
    if isinstance(posterior, Factors):
        groups = {f"factor/{name}": factor.eta for name, factor in posterior.factors.items()}
        groups["points"] = dict(posterior.points)
    else:
        groups = {"sites": dict(posterior.sites), "stats": dict(posterior.stats), "discrete": dict(posterior.discrete)}
    for group, values in groups.items():
        tensors |= {f"posterior/{group}/{name}": value for name, value in values.items()}
    names = {group: list(values) for group, values in groups.items()}
    return {"kind": type(posterior).__name__, "groups": names}


def _restore_posterior(stored: Mapping[str, Any], tensors: Mapping[str, Tensor], model: Model) -> Factors | Draws:
    """The posterior from its saved groups of tensors, checked against the model's prior."""
    groups = {
        group: {name: tensors[f"posterior/{group}/{name}"] for name in names}
        for group, names in stored["groups"].items()
    }
    if stored["kind"] == "Draws":
        return Draws(groups["sites"], groups["stats"], groups.get("discrete", {}))  # once there were none
    if stored["kind"] != "Factors" or not isinstance(model, Conjugate):
        raise FileError(f"load: a posterior must be Draws, or Factors of a conjugate model, got {stored['kind']!r}")
    prior = model.natural_prior()
    found = {f"factor/{name}" for name in prior}
    if found != set(groups) - {"points"}:
        raise FileError(f"load: the factors must be those of the model, {sorted(found)}, got {sorted(groups)}")
    factors = {name: _matching(name, factor, groups[f"factor/{name}"]) for name, factor in prior.items()}
    return Factors(factors, groups["points"])


def _matching(name: str, prior: Factor, eta: dict[str, Tensor]) -> Factor:
    """A factor of the prior's family, whose shapes it must have."""
    shapes = {key: tuple(value.shape) for key, value in eta.items()}
    expected = {key: tuple(value.shape) for key, value in prior.eta.items()}
    if shapes != expected:
        raise FileError(f"load: factor {name!r} must have the shapes of the model's prior, {expected}, got {shapes}")
    return Factor(prior.family, eta)


def _store_labels(dim: str, labels: np.ndarray, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401 (JSON)
    """Numbers go to the tensors, bit for bit; text, dates and the rest to JSON."""
    labels = np.asarray(labels)
    if labels.dtype.kind in "biuf":
        tensors[f"labels/{dim}"] = torch.tensor(labels)
        return {"kind": "number"}
    if labels.dtype.kind in "mM":
        return {"kind": str(labels.dtype), "values": labels.astype(np.int64).tolist()}
    return {"kind": "text", "values": [str(label) for label in labels]}


def _restore_labels(dim: str, stored: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> np.ndarray:
    if stored["kind"] == "number":
        return tensors[f"labels/{dim}"].numpy()
    if stored["kind"] == "text":
        return np.asarray(stored["values"], dtype=str)
    return np.asarray(stored["values"], dtype=np.int64).astype(stored["kind"])
