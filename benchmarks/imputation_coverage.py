"""How often intervals of imputed entries hold the truth, on data simulated from each model's prior.

Typical use:

    python benchmarks/imputation_coverage.py --sets 20

Writes benchmarks/results/imputation_coverage.md. Entries of one data set are not independent, so the standard error is
taken between data sets.
"""

import argparse
import logging
import time
from pathlib import Path

import numpy as np
import torch

from ppgen.durations import NegativeBinomialDurations
from ppgen.emissions import Gaussian
from ppgen.errors import PpgenError
from ppgen.inference import mcmc, vb
from ppgen.models import CCA, GMM, HMM, LDS, SLDS, FactorialHMM
from ppgen.predictions import predictive

MODELS = {
    "GMM": lambda: GMM(2, 3),
    "CCA": lambda: CCA(4, 1),
    "HMM": lambda: HMM(2, emission=Gaussian(3, covariance="diagonal")),
    "HMM, durations": lambda: HMM(
        3, emission=Gaussian(3, covariance="diagonal"), durations=NegativeBinomialDurations(3)
    ),
    "LDS": lambda: LDS(2, 4),
    "SLDS": lambda: SLDS(2, 2, 4),
    "FactorialHMM": lambda: FactorialHMM([2, 2], 3),
    "FactorialHMM, held": lambda: FactorialHMM([2, 2], 3, product=1),
}
LEVELS, DRAWS = (0.5, 0.8, 0.95), 200
LARGEST = 1e3  # data of a draw from the prior that explodes are drawn again


def simulated(model):
    """Whole data from parameters of the prior."""
    shape = (120, width(model)) if model.data_dims[1] == "feature" else (2, 60, width(model))
    while True:
        empty = torch.zeros(shape, dtype=torch.float64)
        x = predictive.replicate(model, predictive.prior(model, empty), empty)
        if bool((x.abs() < LARGEST).all()):
            return x.numpy()


def width(model):
    """The number of features."""
    return getattr(model, "features", None) or model.emission.features


def hidden(kind, shape, rng):
    """Entries hidden at random, in a block of time, or of a whole channel (of rows: in a third of them)."""
    mask = np.zeros(shape, bool)
    if kind == "entries":
        mask = rng.random(shape) < 0.15
    elif kind == "block":
        start = rng.integers(10, shape[-2] - 20)
        mask[..., start : start + 10, :] = True
    elif len(shape) == 3:
        mask[0, :, rng.integers(shape[-1])] = True
    else:
        mask[: shape[0] // 3, rng.integers(shape[-1])] = True
    return mask


def fitted(engine, model, x, seed):
    """A fit by variational Bayes, or by Gibbs sampling from it."""
    fit = vb.fit(model, x, n_init=2, random_seed=seed, progressbar=False)
    if engine == "vb":
        return fit
    run = {"sampler": "gibbs", "tune": 100, "draws": 100, "chains": 2, "random_seed": seed, "progressbar": False}
    return mcmc.fit(model, x, **run)


def covered(make, kind, engine, sets):
    """Share of hidden entries inside each interval, and its standard error between data sets."""
    shares, count, failed = [], 0, 0
    for number in range(sets):
        torch.manual_seed(number)
        model, rng = make(), np.random.default_rng(number)
        whole = simulated(model)
        mask = hidden(kind, whole.shape, rng)
        try:
            fit = fitted(engine, model, np.where(mask, np.nan, whole), number)
            draws = np.asarray(fit.impute(np.where(mask, np.nan, whole), draws=DRAWS, random_seed=0, progressbar=False))
        except PpgenError:  # data of the prior that the model refuses, as of features in unsuitable units
            failed += 1
            continue
        ends = [np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0) for level in LEVELS]
        shares.append([((low <= whole) & (whole <= high))[mask].mean() for low, high in ends])
        count += int(mask.sum())
    found = np.array(shares)
    return found.mean(0), found.std(0, ddof=1) / len(found) ** 0.5, count, failed


def main():
    """Run, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=20)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--engines", nargs="*", default=["vb", "gibbs"])
    options = parser.parse_args()
    logging.getLogger("ppgen").setLevel(logging.ERROR)
    lines = [
        "| model | hidden | engine | entries | in 50 % | in 80 % | in 95 % | sets refused |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in options.models:
        kinds = ("entries", "channel") if MODELS[name]().data_dims[1] == "feature" else ("entries", "block", "channel")
        for kind in kinds:
            for engine in options.engines:
                began = time.perf_counter()
                mean, error, count, failed = covered(MODELS[name], kind, engine, options.sets)
                cells = " | ".join(f"{m:.3f} ± {e:.3f}" for m, e in zip(mean, error, strict=True))
                lines.append(f"| {name} | {kind} | {engine} | {count} | {cells} | {failed} |")
                print(lines[-1], f"{time.perf_counter() - began:.0f} s", flush=True)
    path = Path(__file__).parent / "results" / "imputation_coverage.md"
    path.write_text("\n".join([f"# {__doc__.splitlines()[0]}", "", *lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
