"""Minimum bulk ESS per second over ten reference posteriors: ours beside Pyro's NUTS (jit) and NumPyro's, one process.

Run with ``PPGEN_DATA`` set, in an environment that holds ppgen, jax and numpyro; names of posteriors may be given::

    PYTHONPATH=tests python benchmarks/mcmc.py [NAME ...]

Everything runs in float64 on one thread, and seconds are those of the processor, its compilers included, so that other
work on the machine counts less. NumPyro (4 chains, vectorised, 500 + 500) is warm: compiled by a first run. Pyro (1
chain, 200 + 200) traces with its jit; it is stopped after 10 seconds (of the hmm: 150), and where that is before its
last draw the figure is what it could have reached at most: 200 over the time. Ours (ChEES, 64 chains, 300 + 1000) is
given as a traced graph and compiled; seconds include starting points and tuning, and in the columns "all in" learning,
tracing and compiling.

``hmm`` is the posterior of a hidden Markov model (K = 3, T = 2,000, simulated, states summed out); Pyro's is its
``DiscreteHMM``, ours has 500 draws a chain, and NumPyro is left out.

``benchmarks/defaults.py`` sets default settings beside nutpie's, in the same file of results; it needs no jax.
"""

import math
import os
import platform
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as nd
import pyro
import pyro.distributions as pd
import torch
from arviz_stats.base import array_stats
from defaults import kept
from jax.scipy.special import logsumexp
from numpyro.distributions import constraints as nc
from posteriordb.programs import CASES, load, parameters
from pyro.infer.autoguide.initialization import init_to_value

from ppgen.inference import mcmc
from ppgen.inference.mcmc.chains import default_chains
from ppgen.inference.mcmc.hamiltonian import Leapfrog
from ppgen.messages import discrete_chain
from ppgen.programs.density import density

jax.config.update("jax_enable_x64", True)
PYRO_DRAWS, NUMPYRO_DRAWS = 200, 500
PYRO_SECONDS, PYRO_SECONDS_HMM = 10.0, 150.0
STATES, STEPS = 3, 2000

RESULT = Path(__file__).parent / "results" / "mcmc.md"
HEAD = """\
| posterior | traced | traced, all in | compiled | compiled, all in | Pyro | NumPyro |
|---|---|---|---|---|---|---|"""
INTRODUCTION = """\
# Samplers beside their peers

Least bulk ESS per second over the parameters of each reference posterior, by `benchmarks/mcmc.py`: one process, one
thread, float64, seconds of the processor ({}). What is run is said at the top of that file.

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


def hmm(x):
    mu, sigma, initial, move = hmm_parameters()
    emitted = pd.Normal(mu, sigma).log_prob(x[:, None])
    first = (initial @ move).log()  # Pyro's moves before it emits
    pyro.factor("data", discrete_chain(first, move.log(), emitted).log_normalizer)


def pyro_hmm(x):
    mu, sigma, initial, move = hmm_parameters()
    emitted = pd.Normal(mu, sigma)
    chain = pd.DiscreteHMM(initial.log(), move.log(), emitted, duration=len(x))
    pyro.sample("x", chain, obs=x)


def hmm_parameters():
    """Priors; means are apart enough that labels do not switch."""
    ones = torch.ones(STATES)
    mu = pyro.sample("mu", pd.Normal(torch.tensor([-2.0, 0.0, 2.0]), 0.5).to_event(1))
    sigma = pyro.sample("sigma", pd.LogNormal(-0.7 * ones, 0.5).to_event(1))
    initial = pyro.sample("initial", pd.Dirichlet(ones))
    return mu, sigma, initial, pyro.sample("move", pd.Dirichlet(torch.ones(STATES, STATES)).to_event(1))


PYRO_PROGRAMS = {hmm: pyro_hmm}


class Case(NamedTuple):
    """A program, its arguments, and where chains of the peers start, {site: (1, ...)}."""

    name: str
    program: Callable[..., None]
    args: tuple[Any, ...]
    sites: dict[str, torch.Tensor]


def reference(name):
    posterior = load(name)
    return Case(name, posterior.program, posterior.args, posterior.sites)


def simulated_hmm():
    generator = np.random.default_rng(1)
    move = 0.05 + 0.85 * np.eye(STATES)
    z = [0]
    for _ in range(STEPS - 1):
        z.append(generator.choice(STATES, p=move[z[-1]]))
    x = torch.tensor(np.array([-2.0, 0.0, 2.0])[z] + 0.7 * generator.standard_normal(STEPS))
    truth = {
        "mu": torch.tensor([-2.0, 0.0, 2.0]),
        "sigma": torch.full((STATES,), 0.7),
        "initial": torch.full((STATES,), 1 / STATES),
        "move": torch.tensor(move),
    }
    return Case("hmm", hmm, (x,), {site: value.double()[None] for site, value in truth.items()})


def least_ess(posterior, draws):
    """Smallest bulk ESS of any number in the draws, {site: (C, S, ...)}."""
    draws = draws if posterior.name == "hmm" else parameters(draws)
    columns = [one for value in draws.values() for one in value.reshape(*value.shape[:2], -1).unbind(-1)]
    return min(float(array_stats.ess(one.numpy(), chain_axis=0, draw_axis=1, method="bulk")) for one in columns)


def clock():
    """Seconds of the processor that this process and those it started have used."""
    return sum(os.times()[:4])


def ours(posterior, mode):
    began = clock()
    draws = 500 if posterior.name == "hmm" else 1000
    fit = mcmc.fit(posterior.program, *posterior.args, draws=draws, compile=mode, random_seed=1, progressbar=False)
    total = clock() - began
    ess = least_ess(posterior, dict(fit.posterior.sites))
    return ess / (total - overhead(posterior, mode)), ess / total


def overhead(posterior, mode):
    """Seconds to learn, trace and compile."""
    began = clock()
    target = density(posterior.program, *posterior.args)
    Leapfrog(target, default_chains(target, "chees"), dense=True, mode=mode, calls=0)
    return clock() - began


class Enough(Exception):
    """Pyro has had its time."""


def pyros(posterior):
    """Least ESS per second, and whether it is only a bound."""
    torch.set_default_dtype(torch.float64)
    try:
        try:
            return pyro_run(posterior, jit=True)
        except RuntimeError:  # what its jit cannot trace
            return pyro_run(posterior, jit=False)
    finally:
        torch.set_default_dtype(torch.float32)


def pyro_run(posterior, jit):
    start = {site: value[0] for site, value in posterior.sites.items()}
    program = PYRO_PROGRAMS.get(posterior.program, posterior.program)
    kernel = pyro.infer.NUTS(
        program,
        jit_compile=jit,
        ignore_jit_warnings=True,
        max_plate_nesting=1,
        init_strategy=init_to_value(values=start),
    )
    began, limit = clock(), PYRO_SECONDS_HMM if posterior.name == "hmm" else PYRO_SECONDS
    count = 0

    def watch(*_):
        nonlocal count
        count += 1
        if clock() - began > limit:
            raise Enough

    pyro.set_rng_seed(1)
    run = pyro.infer.MCMC(kernel, PYRO_DRAWS, warmup_steps=PYRO_DRAWS, disable_progbar=True, hook_fn=watch)
    try:
        with pyro.validation_enabled(False):
            run.run(*posterior.args)
    except Enough:
        print(f"Pyro, {posterior.name}: {count} of {2 * PYRO_DRAWS} iterations", file=sys.stderr)
        return PYRO_DRAWS / (clock() - began), True
    draws = run.get_samples(group_by_chain=True)
    return least_ess(posterior, draws) / (clock() - began), False


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
        began = clock()
        run.run(jax.random.PRNGKey(seed), *args)
        jax.block_until_ready(run.get_samples())
        total = clock() - began
    draws = {k: torch.tensor(np.asarray(v)) for k, v in run.get_samples(group_by_chain=True).items()}
    return least_ess(posterior, draws) / total


def main(names):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows, lines = {}, [HEAD]
    overhead(reference(next(iter(CASES))), "compiled")  # imports of the compiler are paid once
    print(HEAD)
    for name in names:
        posterior = simulated_hmm() if name == "hmm" else reference(name)
        peer, bounded = pyros(posterior)
        other = math.nan if name == "hmm" else numpyros(posterior)
        rows[name] = [*ours(posterior, "traced"), *ours(posterior, "compiled"), peer, other]
        cells = ["-" if math.isnan(v) else f"{v:.0f}" if v >= 10 else f"{v:.2g}" for v in rows[name]]
        cells[4] = "< " * bounded + cells[4]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    table = np.log(np.array([row for name, row in rows.items() if name != "hmm"]))
    lines += ["", *summary(table)] if len(table) else []
    if "hmm" in rows:
        own, peer = rows["hmm"][:4], rows["hmm"][4]
        lines.append(f"- hmm: {own[0] / peer:.0f} (traced), {own[2] / peer:.0f} (compiled), all in {own[1] / peer:.0f}")
        lines[-1] += f" and {own[3] / peer:.0f} times Pyro"
    print("\n".join(lines[len(rows) + 1 :]))
    if set(names) == {*CASES, "hmm"}:
        table = INTRODUCTION.format(platform.processor() or platform.machine()) + "\n".join(lines) + "\n"
        RESULT.write_text(table + kept()[1])


def summary(table):
    for label, column in (("traced", 0), ("traced, all in", 1), ("compiled", 2), ("compiled, all in", 3)):
        over_pyro, over_numpyro = (np.exp(table[:, column] - table[:, peer]) for peer in (4, 5))
        yield (
            f"- {label}: {math.exp(np.log(over_pyro).mean()):.0f} times Pyro (at worst {over_pyro.min():.1f}) and "
            f"{math.exp(np.log(over_numpyro).mean()):.1f} times NumPyro (at worst {over_numpyro.min():.2f}), geometric "
            "means"
        )


if __name__ == "__main__":
    main(sys.argv[1:] or [*CASES, "hmm"])
