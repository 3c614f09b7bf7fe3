"""Ways to fill a table: models of this suite, with a distribution for each entry, and the usual imputers, without."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float

from ppgen.inference import mcmc, vb
from ppgen.models import CCA, GMM, MissingMechanism
from ppgen.results.fit import Fit

__all__ = ["IMPUTERS", "MODELS", "Filled", "filled"]

DRAWS = 100
COMPONENTS = (1, 2, 4)  # of mixtures, chosen by held-out entries
SWEEPS = 100  # draws and tuning of Gibbs samplers, of two chains


@final
@dataclass(frozen=True)
class Filled:
    """A filled table: values (N, D), draws (S, N, D) of them if there is a distribution, and the fit behind these."""

    values: Float[np.ndarray, "N D"]
    draws: Float[np.ndarray, "S N D"] | None = None
    fit: Fit | None = None


def _mean(x: np.ndarray, random_seed: int) -> np.ndarray:
    return np.where(np.isnan(x), np.nan_to_num(np.nanmean(x, 0)), x)


def _neighbours(x: np.ndarray, random_seed: int) -> np.ndarray:
    from sklearn.impute import KNNImputer

    return np.asarray(KNNImputer(n_neighbors=5, keep_empty_features=True).fit_transform(x))


def _iterative(x: np.ndarray, random_seed: int) -> np.ndarray:
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401 (which makes the next import possible)
    from sklearn.impute import IterativeImputer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        made = IterativeImputer(max_iter=20, random_state=random_seed, keep_empty_features=True)
        return np.asarray(made.fit_transform(x))


def _mixture(x: np.ndarray, random_seed: int) -> Fit:
    """A Gaussian mixture of the number of components that says most of a tenth of the entries, hidden for that.

    Variational Bayes finds it; draws from its posterior are wider, as they should be where rows are few.
    """
    rng = np.random.default_rng(random_seed)
    given = np.where((rng.random(x.shape) < 0.1) & (np.isfinite(x).sum(1, keepdims=True) > 1), np.nan, x)
    scores = []
    for components in COMPONENTS:
        fit = _gmm(given, components, random_seed)
        scores.append(float(fit.log_conditional(x, given, random_seed=random_seed).sum()))
    chosen = _gmm(x, COMPONENTS[int(np.argmax(scores))], random_seed)
    return mcmc.fit(
        chosen.model, x, sampler="gibbs", start=chosen, tune=SWEEPS, draws=SWEEPS, chains=2, random_seed=random_seed,
        progressbar=False,
    )  # fmt: skip


def _gmm(x: np.ndarray, components: int, random_seed: int) -> Fit:
    return vb.fit(GMM(components, x.shape[1]), x, n_init=3, random_seed=random_seed, progressbar=False)


def _factors(x: np.ndarray, random_seed: int) -> Fit:
    model = CCA(x.shape[1], _latent(x), sparse=True)
    return vb.fit(model, x, random_seed=random_seed, progressbar=False)


def _latent(x: np.ndarray) -> int:
    """Latent numbers: half as many as columns; sparse factors leave out what is not needed."""
    return max(1, min(8, x.shape[1] // 2))


def _mechanism(x: np.ndarray, random_seed: int) -> Fit:
    model = MissingMechanism(CCA(x.shape[1], _latent(x)))
    return mcmc.fit(model, x, tune=SWEEPS, draws=SWEEPS, chains=2, random_seed=random_seed, progressbar=False)


IMPUTERS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "mean": _mean,
    "nearest neighbours": _neighbours,
    "iterative regressions": _iterative,
}
MODELS: dict[str, Callable[[np.ndarray, int], Fit]] = {
    "Gaussian mixture": _mixture,
    "factor analysis": _factors,
    "factors with mechanism": _mechanism,
}


def filled(name: str, x: Float[np.ndarray, "N D"], random_seed: int) -> Filled:
    """The table filled by one of `IMPUTERS` or `MODELS`; without a gap a mechanism is the mixture instead."""
    if name in IMPUTERS:
        return Filled(IMPUTERS[name](x, random_seed))
    fit = MODELS[name](x, random_seed)
    draws = np.asarray(fit.impute(x, draws=DRAWS, random_seed=random_seed, progressbar=False))
    return Filled(draws.mean(0), draws, fit)
