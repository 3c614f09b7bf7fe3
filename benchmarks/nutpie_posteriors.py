"""Fit one reference posterior with nutpie, PyMC's compiled NUTS, at its default settings.

``benchmarks/defaults.py`` runs this file in a process of its own, with the interpreter of another virtual environment,
because nutpie wants another Numba than ppgen::

    python -m venv nutpie && nutpie/bin/pip install nutpie==0.16.8 pymc==5.28.5
    nutpie/bin/python benchmarks/nutpie_posteriors.py NAME DATA.json DRAWS.npz

The models are those of ``tests/posteriordb/programs.py``, with the same names of sites. The draws of each site go to
``DRAWS.npz``; a line of JSON says how long compiling and everything took: seconds of the processor and of the clock.
"""

import json
import os
import sys
import time

import numpy as np
import nutpie
import pymc as pm
import pytensor
import pytensor.tensor as pt
from pymc.distributions.transforms import Ordered, ordered


def autoregression(data):
    y = np.array(data["y"])
    past = np.stack([y[4 - k : len(y) - k - 1] for k in range(5)], -1)
    alpha, beta = pm.Normal("alpha", 0, 10), pm.Normal("beta", 0, 10, shape=5)
    pm.Normal("y", alpha + past @ beta, pm.HalfCauchy("sigma", 2.5), observed=y[5:])


def arma(data):
    y = np.array(data["y"])
    mu, phi = pm.Normal("mu", 0, 10), pm.Normal("phi", 0, 2)
    theta, sigma = pm.Normal("theta", 0, 2), pm.HalfCauchy("sigma", 2.5)
    residual = y - mu - phi * pt.concatenate([mu[None], y[:-1]])
    step = lambda now, error, theta: now - theta * error  # noqa: E731
    error = pytensor.scan(step, [residual], [pt.zeros(())], [theta], return_updates=False)
    pm.Potential("error", pm.logp(pm.Normal.dist(0, sigma), error).sum())


def chain(theta, emitted):
    """Log-probability of what a chain of two states emitted, each with weight 1 at first."""
    move = pt.log(theta)

    def add(one, other):  # logaddexp overflows where a scan hides it from the rewriter
        return one + pt.softplus(other - one)

    def step(e, alpha, move):
        return add(alpha[0] + move[0], alpha[1] + move[1]) + e

    alphas = pytensor.scan(step, [emitted[1:]], [emitted[0]], [move], return_updates=False)
    pm.Potential("data", add(alphas[-1, 0], alphas[-1, 1]))


def two_exponentials(data):
    u, v, alpha = (np.array(data[name], float) for name in ("u", "v", "alpha"))
    theta = pt.stack([pm.Dirichlet(f"theta{k + 1}", alpha[k]) for k in range(2)])
    apart = {"mu": [0.0, 3.0], "sigma": 1.0, "transform": Ordered(positive=True), "initval": [1.0, 3.0]}
    phi, rate = pm.Normal("phi", **apart), pm.Normal("lambda", **apart)
    chain(theta, pt.log(phi) - phi * u[:, None] + pt.log(rate) - rate * v[:, None])


def two_normals(data):
    y = np.array(data["y"])
    theta = pt.stack([pm.Dirichlet(f"theta{k + 1}", np.ones(2)) for k in range(2)])
    mu = pm.Normal("mu", [3.0, 10.0], 1.0, transform=Ordered(positive=True), initval=[3.0, 10.0])
    chain(theta, pm.logp(pm.Normal.dist(mu, 1.0), y[:, None]))


def eight_schools(data):
    mu, tau, effect = pm.Normal("mu", 0, 5), pm.HalfCauchy("tau", 5), pm.Normal("effect", 0, 1, shape=8)
    pm.Normal("y", mu + tau * effect, np.array(data["sigma"], float), observed=np.array(data["y"], float))


def regression(columns, y, beta=pm.Flat, sigma=pm.HalfFlat):
    X = np.stack([np.array(column, float) for column in columns], -1)
    mean = X @ beta("beta", shape=X.shape[1])
    pm.Normal("y", mean, sigma("sigma"), observed=np.array(y, float))


def kidiq(data):
    school, iq = np.array(data["mom_hs"], float), np.array(data["mom_iq"], float)
    columns = [np.ones_like(iq), school, iq, school * iq]
    regression(columns, data["kid_score"], sigma=lambda name: pm.HalfCauchy(name, 2.5))


def mesquite(data):
    logs = [np.log(data[name]) for name in ("diam1", "diam2", "canopy_height", "total_height", "density")]
    regression([np.ones_like(logs[0]), *logs, data["group"]], np.log(data["weight"]))


def nes(data):
    ages = [np.array(data["age_discrete"]) == age for age in (2, 3, 4)]
    rest = [data[name] for name in ("educ1", "gender", "income")]
    regression([np.ones(data["N"]), data["real_ideo"], data["race_adj"], *ages, *rest], data["partyid7"])


def blr(data):
    normal = {"beta": lambda name, shape: pm.Normal(name, 0, 10, shape=shape)}
    regression(np.array(data["X"]).T, data["y"], **normal, sigma=lambda name: pm.HalfNormal(name, 10))


def mixture(data):
    mu = pm.Normal("mu", 0, 2, shape=2, transform=ordered, initval=[-1.0, 1.0])
    sigma, theta = pm.HalfNormal("sigma", 2, shape=2), pm.Beta("theta", 5, 5)
    pm.NormalMixture("y", pt.stack([theta, 1 - theta]), mu, sigma, observed=np.array(data["y"]))


def one_normal(data):
    pm.Normal("x")


MODELS = {
    "one normal": one_normal,
    "arK-arK": autoregression,
    "arma-arma11": arma,
    "bball_drive_event_0-hmm_drive_0": two_exponentials,
    "eight_schools-eight_schools_noncentered": eight_schools,
    "hmm_example-hmm_example": two_normals,
    "kidiq-kidscore_interaction": kidiq,
    "low_dim_gauss_mix-low_dim_gauss_mix": mixture,
    "mesquite-logmesquite": mesquite,
    "nes1980-nes": nes,
    "sblrc-blr": blr,
}


def clock():
    """Seconds of the processor that this process and those it started have used, and of the clock."""
    return np.array([sum(os.times()[:4]), time.perf_counter()])


def main(name, data, draws):
    with open(data) as file:
        known = json.load(file)
    began = clock()
    with pm.Model() as model:
        MODELS[name](known)
    compiled = nutpie.compile_pymc_model(model)
    ready = clock()
    tree = nutpie.sample(compiled, seed=1, progress_bar=False)
    done = clock()
    sites = [variable.name for variable in model.free_RVs]
    np.savez(draws, **{site: tree.posterior[site].values for site in sites})
    print(json.dumps({"compile": list(ready - began), "seconds": list(done - began), "chose": ""}))


if __name__ == "__main__":
    main(*sys.argv[1:])
