"""Minimum bulk ESS per second over ten reference posteriors: ours beside Pyro's NUTS (jit) and NumPyro's, one process.

Run with ``PPGEN_DATA`` set, in an environment that holds ppgen, jax and numpyro; names of posteriors may be given::

    PYTHONPATH=tests python benchmarks/mcmc.py [NAME ...]

Everything runs in float64 on one thread. NumPyro (4 chains, vectorised, 1000 + 1000) is warm: compiled by a first run.
Pyro (1 chain, 200 + 200) traces with its jit. Ours (ChEES, 64 chains, 300 + 1000) is given as a traced graph and
compiled; seconds include starting points and tuning, and in the columns "all in" learning, tracing and compiling too.
"""

import math
import platform
import sys
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as nd
import pyro
import torch
from arviz_stats.base import array_stats
from jax.scipy.special import logsumexp
from numpyro.distributions import constraints as nc
from posteriordb.programs import CASES, load, parameters
from pyro.infer.autoguide.initialization import init_to_value

from ppgen.inference import mcmc

jax.config.update("jax_enable_x64", True)
PYRO_DRAWS, NUMPYRO_DRAWS = 200, 1000

RESULT = Path(__file__).parent / "results" / "mcmc.md"
HEAD = """\
| posterior | traced | traced, all in | compiled | compiled, all in | Pyro | NumPyro |
|---|---|---|---|---|---|---|"""
INTRODUCTION = """\
# Samplers beside their peers

Least bulk ESS per second over the parameters of each reference posterior, by `benchmarks/mcmc.py`: one process, one
thread, float64, {}. What is run is said at the top of that file.

"""


def n_autoregression(y, lags):
    alpha = numpyro.sample("alpha", nd.Normal(0.0, 10.0))
    beta = numpyro.sample("beta", nd.Normal(0.0, 10.0).expand([lags]).to_event(1))
    sigma = numpyro.sample("sigma", nd.HalfCauchy(2.5))
    past = jnp.stack([y[lags - k - 1 : len(y) - k - 1] for k in range(lags)], -1)
    numpyro.sample("y", nd.Normal(alpha + past @ beta, sigma), obs=y[lags:])


def n_arma(y):
    mu, phi = numpyro.sample("mu", nd.Normal(0.0, 10.0)), numpyro.sample("phi", nd.Normal(0.0, 2.0))
    theta, sigma = numpyro.sample("theta", nd.Normal(0.0, 2.0)), numpyro.sample("sigma", nd.HalfCauchy(2.5))
    error = y - mu - phi * jnp.concatenate([mu[None], y[:-1]])
    power, shift = -theta, 1
    while shift < len(y):
        error = error + power * jnp.concatenate([jnp.zeros(shift), error[:-shift]])
        power, shift = power * power, 2 * shift
    numpyro.sample("error", nd.Normal(0.0, sigma), obs=error)


def n_chain(theta, emitted):
    move = jnp.log(theta)

    def step(alpha, e):
        return logsumexp(alpha[:, None] + move, axis=0) + e, None

    return logsumexp(jax.lax.scan(step, emitted[0], emitted[1:])[0])


def n_two_exponentials(u, v, alpha):
    theta = jnp.stack([numpyro.sample(f"theta{k + 1}", nd.Dirichlet(alpha[k])) for k in range(2)])
    phi = numpyro.sample("phi", nd.ImproperUniform(nc.positive_ordered_vector, (), (2,)))
    rate = numpyro.sample("lambda", nd.ImproperUniform(nc.positive_ordered_vector, (), (2,)))
    centre = nd.Normal(jnp.array([0.0, 3.0]), 1.0)
    numpyro.factor("prior", centre.log_prob(phi).sum() + centre.log_prob(rate).sum())
    emitted = nd.Exponential(phi).log_prob(u[:, None]) + nd.Exponential(rate).log_prob(v[:, None])
    numpyro.factor("data", n_chain(theta, emitted))


def n_two_normals(y):
    theta = jnp.stack([numpyro.sample(f"theta{k + 1}", nd.Dirichlet(jnp.ones(2))) for k in range(2)])
    mu = numpyro.sample("mu", nd.ImproperUniform(nc.positive_ordered_vector, (), (2,)))
    numpyro.factor("prior", nd.Normal(jnp.array([3.0, 10.0]), 1.0).log_prob(mu).sum())
    numpyro.factor("data", n_chain(theta, nd.Normal(mu, 1.0).log_prob(y[:, None])))


def n_eight_schools(y, sigma):
    mu, tau = numpyro.sample("mu", nd.Normal(0.0, 5.0)), numpyro.sample("tau", nd.HalfCauchy(5.0))
    effect = numpyro.sample("effect", nd.Normal(0.0, 1.0).expand([len(y)]).to_event(1))
    numpyro.sample("y", nd.Normal(mu + tau * effect, sigma), obs=y)


def n_regression(X, y, coefficients, scale):
    flat = nd.ImproperUniform(nc.real_vector, (), (X.shape[1],))
    beta = numpyro.sample("beta", nd.Normal(0.0, 10.0).expand([X.shape[1]]).to_event(1) if coefficients else flat)
    priors = {None: nd.ImproperUniform(nc.positive, (), ()), "HalfCauchy": nd.HalfCauchy(2.5)}
    kind = None if scale is None else type(scale()).__name__
    sigma = numpyro.sample("sigma", priors.get(kind, nd.HalfNormal(10.0)))
    numpyro.sample("y", nd.Normal(X @ beta, sigma), obs=y)


def n_mixture(y):
    mu = numpyro.sample("mu", nd.ImproperUniform(nc.ordered_vector, (), (2,)))
    numpyro.factor("prior", nd.Normal(0.0, 2.0).log_prob(mu).sum())
    sigma = numpyro.sample("sigma", nd.HalfNormal(2.0).expand([2]).to_event(1))
    theta = numpyro.sample("theta", nd.Beta(5.0, 5.0))
    weights = nd.Categorical(probs=jnp.stack([theta, 1 - theta]))
    numpyro.sample("y", nd.MixtureSameFamily(weights, nd.Normal(mu, sigma)), obs=y)


def least_ess(flat):
    return min(float(array_stats.ess(value, chain_axis=0, draw_axis=1, method="bulk")) for value in flat.values())


def ours(posterior, mode):
    began = time.perf_counter()
    fit = mcmc.fit(posterior.program, *posterior.args, compile=mode, random_seed=1, progressbar=False)
    total = time.perf_counter() - began
    spent = fit.attrs["compile_seconds"]
    overhead = sum(seconds for stage, seconds in spent.items() if stage != "call")
    ess = least_ess({k: v.numpy() for k, v in parameters(dict(fit.posterior.sites)).items()})
    return ess / (total - overhead), ess / total


def pyros(posterior):
    torch.set_default_dtype(torch.float64)
    start = {site: value[0] for site, value in posterior.sites.items()}
    try:
        for jit in (True, False):
            try:
                kernel = pyro.infer.NUTS(
                    posterior.program,
                    jit_compile=jit,
                    ignore_jit_warnings=True,
                    max_plate_nesting=1,
                    init_strategy=init_to_value(values=start),
                )
                pyro.set_rng_seed(1)
                run = pyro.infer.MCMC(kernel, PYRO_DRAWS, warmup_steps=PYRO_DRAWS, disable_progbar=True)
                began = time.perf_counter()
                with pyro.validation_enabled(False):
                    run.run(*posterior.args)
                break
            except RuntimeError:
                if not jit:
                    raise
        total = time.perf_counter() - began
        draws = run.get_samples(group_by_chain=True)
    finally:
        torch.set_default_dtype(torch.float32)
    return least_ess({k: v.numpy() for k, v in parameters(draws).items()}) / total


def numpyros(posterior):
    program = globals()["n_" + posterior.program.__name__]
    args = [jnp.asarray(arg.numpy()) if isinstance(arg, torch.Tensor) else arg for arg in posterior.args]
    start = {site: jnp.asarray(value[0].numpy()) for site, value in posterior.sites.items()}
    kernel = numpyro.infer.NUTS(program, init_strategy=numpyro.infer.init_to_value(values=start))
    run = numpyro.infer.MCMC(
        kernel,
        num_warmup=NUMPYRO_DRAWS,
        num_samples=NUMPYRO_DRAWS,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    for seed in (0, 1):  # the first run compiles
        began = time.perf_counter()
        run.run(jax.random.PRNGKey(seed), *args)
        jax.block_until_ready(run.get_samples())
        total = time.perf_counter() - began
    draws = {k: torch.tensor(np.asarray(v)) for k, v in run.get_samples(group_by_chain=True).items()}
    return least_ess({k: v.numpy() for k, v in parameters(draws).items()}) / total


def main(names):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows, lines = [], [HEAD]
    print(HEAD)
    for name in names:
        posterior = load(name)
        row = [*ours(posterior, "traced"), *ours(posterior, "compiled"), pyros(posterior), numpyros(posterior)]
        rows.append(row)
        lines.append(f"| {name} | " + " | ".join(f"{value:.0f}" for value in row) + " |")
        print(lines[-1], flush=True)
    lines += ["", *summary(np.log(np.array(rows)))]
    print("\n".join(lines[-5:]))
    if set(names) == set(CASES):
        RESULT.write_text(INTRODUCTION.format(platform.processor() or platform.machine()) + "\n".join(lines) + "\n")


def summary(table):
    for label, column in (("traced", 0), ("traced, all in", 1), ("compiled", 2), ("compiled, all in", 3)):
        pyro_times, numpyro_times = (math.exp((table[:, column] - table[:, peer]).mean()) for peer in (4, 5))
        worst = math.exp((table[:, column] - table[:, 5]).min())
        yield (
            f"- {label}: {pyro_times:.0f} times Pyro and {numpyro_times:.1f} times NumPyro (geometric means); at worst "
            f"{worst:.2f} times NumPyro"
        )


if __name__ == "__main__":
    main(sys.argv[1:] or list(CASES))
