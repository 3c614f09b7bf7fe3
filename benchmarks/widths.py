"""How wide guides are beside posteriors that are known exactly, no option set: python benchmarks/widths.py

Every posterior is normal, so a right guide of full rank has its covariance, and one of mean field the widths that are
best for it, one over the root of the precisions (Bishop 2006, section 10.1.2).
"""

import argparse
import time

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from ppgen.inference import svi
from ppgen.model import Model

torch.set_default_dtype(torch.float64)


class Centre(Model):
    """The mean of rows of two features with unit noise."""

    data_dims = ("row", "feature")
    dims = {"theta": ("feature",)}

    def model(self, x, *, u=None, total=None):
        theta = pyro.sample("theta", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            pyro.sample("x", dist.Normal(theta, 1.0).to_event(1), obs=x)


class Regression(Model):
    """A linear regression of the first feature on inputs, with unit noise."""

    data_dims = ("row", "feature")
    dims = {"theta": ("input",)}

    def model(self, x, *, u=None, total=None):
        theta = pyro.sample("theta", dist.Normal(x.new_zeros(u.shape[1]), 1.0).to_event(1))
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            pyro.sample("x", dist.Normal((u @ theta)[:, None], 1.0).to_event(1), obs=x)


def problem(kind, rows, seed):
    """Model, data, inputs, and mean and precision of the posterior."""
    rng = np.random.default_rng(seed)
    if kind == "mean":
        x = torch.tensor(rng.normal(1.0, 1.0, (rows, 2)))
        return Centre(), x, None, x.sum(0) / (rows + 1), (rows + 1) * torch.eye(2)
    size, correlation = {"inputs 4, .95": (4, 0.95), "inputs 20, .5": (20, 0.5)}[kind]
    root = torch.linalg.cholesky((1 - correlation) * torch.eye(size) + correlation)
    u = torch.tensor(rng.normal(size=(rows, size))) @ root.T
    x = (u @ torch.tensor(rng.normal(size=size)) + torch.tensor(rng.normal(size=rows)))[:, None]
    precision = torch.eye(size) + u.T @ u
    return Regression(), x, u, torch.linalg.solve(precision, u.T @ x[:, 0]), precision


def normal_of(fit):
    """Mean and widths of a normal guide: its log density is a quadratic function of the draws."""
    v, log_q = fit.posterior.sites["theta"][0], fit.posterior.stats["log_q"][0]
    i, j = torch.triu_indices(v.shape[1], v.shape[1])
    centre, scale = v.mean(0), v.std(0)
    w = (v - centre) / scale
    found = torch.linalg.lstsq(torch.cat([w[:, i] * w[:, j], w, torch.ones(len(w), 1)], 1), log_q[:, None]).solution[
        :, 0
    ]
    half = torch.zeros(v.shape[1], v.shape[1])
    half[i, j] = found[: len(i)]
    covariance = torch.linalg.inv(-(half + half.T))
    return centre + scale * (covariance @ found[len(i) : -1]), scale * covariance.diagonal().sqrt()


def row(kind, rows, batch_size, guide, seeds):
    """Over seeds: extremes of width / exact width, largest distance of a mean in widths, steps, mean CPU seconds."""
    ratios, shifts, steps, seconds = [], [], [], []
    for seed in range(seeds):
        model, x, u, mean, precision = problem(kind, rows, seed)
        began = time.process_time()
        options = {"guide": guide, "batch_size": batch_size, "random_seed": seed, "progressbar": False, "draws": 1000}
        fit = svi.fit(model, x, u=u, **options)
        seconds.append(time.process_time() - began)
        full = guide == "full_rank"
        width = torch.linalg.inv(precision).diagonal().sqrt() if full else precision.diagonal() ** -0.5
        found, widths = normal_of(fit)
        ratios += (widths / width).tolist()
        shifts.append(float(((found - mean) / width).abs().max()))
        steps.append(len(fit.history) if fit.attrs["converged"] else -1)
    return f"{min(ratios):.3f}-{max(ratios):.3f}", f"{max(shifts):.3f}", max(steps), f"{np.mean(seconds):.1f}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=4)
    seeds = parser.parse_args().seeds
    print("| posterior | rows | batch | guide | width / exact | mean off by | steps | CPU s |")
    print("|---|---|---|---|---|---|---|---|")
    cases = [("mean", rows, size) for rows in (50, 500, 5000, 100_000) for size in (None, 50)]
    cases += [("inputs 4, .95", rows, size) for rows, size in ((60, None), (5000, None), (5000, 50))]
    cases += [("inputs 20, .5", rows, size) for rows, size in ((60, None), (5000, None), (100_000, 500))]
    for kind, rows, size in cases:
        for guide in ("mean_field", "full_rank"):
            found = row(kind, rows, size, guide, seeds)
            print("|", " | ".join(str(part) for part in (kind, rows, size or "all", guide, *found)), "|", flush=True)


if __name__ == "__main__":
    main()
