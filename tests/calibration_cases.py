"""Mixtures and linear dynamical systems whose posteriors are calibrated, with entries hidden in several ways."""

import math

import torch

from ppgen.inference.calibration import calibrate
from ppgen.models import CCA, GMM, LDS, MixtureOfExperts

REPLICATIONS = 1000
LEVELS = (0.5, 0.8, 0.95)


def template(*shape, hidden=()):
    x = torch.zeros(*shape, dtype=torch.float64)
    for place in hidden:
        x[place] = math.nan
    return x


# Of an LDS the state may change its sign: ranked is what does not depend on it.
SAME = {
    "gain": lambda theta, data: theta["dynamics"][0, 0],
    "loadings": lambda theta, data: theta["loading"][:, 0, 0] * theta["loading"][0, 0, 0],
    "offset": lambda theta, data: theta["loading"][:, 0, 1],
}
STATES = {"sites": ["dynamics_precision_cholesky", "loading_precision_cholesky"], "quantities": SAME}
ROWS = ((1, 0), (4, 1), 7)
SCATTERED = ((0, 1, 0), (0, 3, 2), (0, 6, 1), (0, 7, 0))

# The latent number of views may change its sign too.
VIEWS = {
    "sites": ["loading_a_precision_cholesky", "loading_b_precision_cholesky"],
    "quantities": {
        "loadings": lambda theta, data: theta["loading_b"][:, 0, 0] * theta["loading_a"][0, 0, 0],
        "offset": lambda theta, data: theta["loading_b"][:, 0, 1],
    },
}

CASES = {
    "GMM, 1 component, vb, exact; entries and a row hidden": (
        GMM(1, 2, strength=1.0), template(12, 2, hidden=ROWS), "vb", {}
    ),
    "GMM, 2 components, mcmc; entries and a row hidden": (GMM(2, 2), template(12, 2, hidden=ROWS), "mcmc", {}),
    "GMM, 2 components, mcmc; a feature hidden": (
        GMM(2, 2), template(12, 2, hidden=[(slice(None), 1)]), "mcmc", {}
    ),
    "LDS, mcmc; a block of steps hidden": (
        LDS(1, 3), template(1, 10, 3, hidden=[(0, slice(4, 7))]), "mcmc", STATES
    ),
    "LDS, mcmc; entries hidden at random": (LDS(1, 3), template(1, 10, 3, hidden=SCATTERED), "mcmc", STATES),
    "LDS, mcmc; a feature hidden": (
        LDS(1, 3), template(1, 10, 3, hidden=[(0, slice(None), 2)]), "mcmc", STATES
    ),
    "CCA, one shared number, mcmc; a view of some rows and entries hidden": (
        CCA({"a": 2, "b": 2}, 1), template(12, 4, hidden=[(1, 0), (4, 3), (7, slice(2, 4))]), "mcmc", VIEWS
    ),
    "experts, 2 lines, mcmc; rows hidden": (
        MixtureOfExperts(2, 1, 1, scale=1.0), template(20, 1, hidden=[(1, 0), (9, 0), (15, 0)]), "mcmc",
        {"u": torch.linspace(-2, 2, 20, dtype=torch.float64)[:, None]}
    ),
}  # fmt: skip


def calibrated(name, replications=REPLICATIONS):
    """The calibration of a case."""
    model, x, engine, options = CASES[name]
    return calibrate(model, x, engine=engine, replications=replications, random_seed=1, progressbar=False, **options)


def coverage(found):
    """Share of the hidden entries that are ranked one by one inside their central intervals, (levels, entries)."""
    pit = torch.from_numpy(found.pit["imputed"])[:, 1:]  # the first is their mean
    return torch.stack([((pit - 0.5).abs() < level / 2).double().mean(0) for level in LEVELS])
