"""The draws of a fit with labels that mean the same in all of them."""

from collections.abc import Mapping
from typing import Any

import torch

from ppgen.diagnostics.relabel import Alignment, align, label_axes, permuted
from ppgen.model import Model
from ppgen.results.posterior import Draws

__all__ = ["SWITCHED", "Switched", "aligned", "alike", "declared", "numbered"]

SWITCHED = "switched"  # attribute of a fit: how its chains had numbered their labels before they were aligned

Labels = Mapping[str, Mapping[str, tuple[int, ...]]]
"""Name of the labels -> site -> its event axes that hold them."""

Switched = Mapping[str, Mapping[str, Any]]
"""Name of the labels -> ``moved``, the share of draws that were numbered otherwise than most, and ``words``: JSON."""


def declared(model: Model, posterior: Draws) -> Labels:
    """The labels that ``model`` calls exchangeable, where there are two or more of them."""
    found = {}
    for name in model.exchangeable:
        axes = {site: places for site, places in label_axes(model.dims, name).items() if site in posterior.sites}
        if any(posterior.sites[site].shape[2 + place] > 1 for site, places in axes.items() for place in places):
            found[name] = axes
    return found


def aligned(posterior: Draws, labels: Labels) -> tuple[Draws, dict[str, Alignment]]:
    """Draws with every set of labels aligned in turn, and how.

    Raises
    ------
    DataError : labels of sites or axes that are not there.
    """
    sites = {name: value.numpy(force=True) for name, value in posterior.sites.items()}
    lp = posterior.stats["lp"].numpy(force=True) if "lp" in posterior.stats else None
    found = {}
    for name, axes in labels.items():
        found[name] = align(sites, axes, lp)
        if found[name].moved:
            moved = {site: permuted(sites[site], found[name].permutation, places) for site, places in axes.items()}
            sites |= moved
    values = {name: torch.as_tensor(sites[name]).to(value.device) for name, value in posterior.sites.items()}
    renumbered = any(alignment.moved for alignment in found.values())
    return posterior.renumbered(values) if renumbered else posterior, found


def alike(model: Model, posterior: Draws) -> Draws:
    """Draws with the labels and the axes of latent spaces that ``model`` calls arbitrary the same in all of them."""
    return numbered(model, posterior)[0]


def numbered(model: Model, posterior: Draws) -> tuple[Draws, Switched]:
    """Draws as `alike` makes them, and how their labels had switched before."""
    labels = declared(model, posterior)
    draws, found = aligned(posterior, labels) if labels else (posterior, {})
    turned = model.turned(draws.sites)
    how = {name: {"moved": one.moved, "words": one.words(name)} for name, one in found.items()}
    return draws if turned is draws.sites else draws.renumbered(turned), how
