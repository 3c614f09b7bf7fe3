"""The states of a fitted model as syllables: numbered by use, in the model itself, so that no table has to be kept.

The states of a hidden Markov model have no order of their own. Everything a run writes takes syllable ``s`` for state
``s`` of the fit it saves.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ppgen.errors import DataError
from ppgen.model import Factor
from ppgen.models.hmm import HMM
from ppgen.programs.program import copy_model
from ppgen.results.fit import Fit
from ppgen.results.posterior import Factors

__all__ = ["numbered", "posterior_tree", "selected"]


def numbered(fit: Fit, order: np.ndarray) -> Fit:
    """The same fit of a hidden Markov model with state ``k`` called ``order[k]``."""
    model, index = copy_model(_hmm(fit)), torch.as_tensor(np.argsort(order))
    if isinstance(model, HMM) and model.hierarchical:
        model.usage_logits.data = model.usage_logits.data[index]
    return replace(fit, model=model, posterior=_taken(fit, index))


def selected(fit: Fit, states: Sequence[int]) -> Fit:
    """The fit as if only these states could be visited, renumbered from 0.

    What is believed of their initial and transition probabilities is what was believed before, given that no other
    state is visited: that is the Dirichlet distribution of the rest of its counts.
    """
    old, index = _hmm(fit), torch.as_tensor(np.asarray(states, dtype=np.int64))
    model = HMM(**{**old.config, "states": len(index), "concentration": old.concentration})
    if old.learn_prior:
        model.log_scales.data = old.log_scales.data.clone()
    if old.hierarchical:
        model.usage_logits.data = old.usage_logits.data[index]
    return replace(fit, model=model, posterior=_taken(fit, index))


def posterior_tree(fit: Fit, used: Sequence[int], draws: int, random_seed: int) -> xr.DataTree:
    """The posterior of the parameters in the ArviZ schema: dim ``syllable``, and which syllables were ``used``.

    The model's ``usage`` is a parameter of the prior of the transitions, a point estimate, and no share of the time;
    it is called ``prior_usage`` here.
    """
    tree = fit.to_arviz(draws=draws, random_seed=random_seed)
    names = {"state": "syllable", "next_state": "next_syllable", "usage": "prior_usage"}
    groups = {}
    for name, node in tree.children.items():
        found = node.to_dataset()
        groups[name] = found.rename({old: new for old, new in names.items() if old in found.variables})
    posterior = groups["posterior"]
    if "prior_usage" in posterior:
        posterior["prior_usage"].attrs["long_name"] = "usage in the prior of the transitions, no share of the time"
    groups["posterior"] = posterior.assign_coords(used=("syllable", np.isin(posterior["syllable"], list(used))))
    return xr.DataTree.from_dict(groups)


def _hmm(fit: Fit) -> HMM:
    if not isinstance(fit.model, HMM) or not isinstance(fit.posterior, Factors):
        raise DataError(f"numbering: the fit must be of an HMM by vb.fit, got {type(fit.model).__name__}")
    return fit.model


def _taken(fit: Fit, index: Tensor) -> Factors:
    """The factors of the states in ``index``, in that order."""
    if not isinstance(fit.posterior, Factors):
        raise DataError("numbering: the fit must be by vb.fit")
    factors = {}
    for name, factor in fit.posterior.factors.items():
        rows = {key: value[index] for key, value in factor.eta.items()}
        if name == "transition":
            rows = {key: value[:, index] for key, value in rows.items()}
        factors[name] = Factor(factor.family, rows)
    points = {site: value[index] if site == "usage" else value for site, value in fit.posterior.points.items()}
    if "usage" in points:
        points["usage"] = points["usage"] / points["usage"].sum()
    return Factors(factors, points)
