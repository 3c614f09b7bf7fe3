"""A linear dynamical system beside statsmodels and dynamax: the same numbers, and seconds of a step of fitting.

    python benchmarks/lds_peers.py

Needs ``pip install ppgen[bench]``. Parameters, inputs and data are the same for all; statsmodels has missing entries
too, which dynamax does not take. dynamax's EM step is compiled, one expectation and one maximisation; ppgen's is a step
of `vb`. Seconds of the processor, with one thread for ppgen; least of several rounds that take turns.
"""

import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from dynamax.linear_gaussian_ssm import LinearGaussianConjugateSSM, lgssm_smoother
from statsmodels.tsa.statespace.kalman_smoother import KalmanSmoother

from ppgen.collapsed.linear_gaussian import LinearGaussian
from ppgen.families.regression import Regression
from ppgen.inference import vb
from ppgen.models import LDS

LATENT, FEATURES, INPUTS = 4, 10, 2
STEPS, ROUNDS, REPEATS = 10_000, 3, 10
RESULT = Path(__file__).parent / "results" / "lds_peers.md"


def parameters():
    """Matrices of the dynamics on (h, u, 1) and of the view, and their noise variances."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(LATENT, LATENT)))[0]
    A = np.concatenate([0.95 * turn, 0.3 * rng.normal(size=(LATENT, INPUTS + 1))], 1)
    C = rng.normal(size=(FEATURES, LATENT + INPUTS + 1))
    root = np.eye(LATENT) + 0.2 * rng.normal(size=(LATENT, LATENT))
    return A, 0.1 * root @ root.T, C, rng.uniform(0.3, 0.6, FEATURES)


def simulated(steps, A, Q, C, r):
    rng = np.random.default_rng(1)
    known = np.concatenate([rng.normal(size=(steps, INPUTS)), np.ones((steps, 1))], 1)
    h, root = [rng.normal(size=LATENT)], np.linalg.cholesky(Q)
    for t in range(1, steps):
        h.append(A @ np.concatenate([h[-1], known[t]]) + root @ rng.normal(size=LATENT))
    x = np.concatenate([np.stack(h), known], 1) @ C.T + np.sqrt(r) * rng.normal(size=(steps, FEATURES))
    return x, known[:, :INPUTS]


def by_ppgen(x, u, A, Q, C, r):
    """Log evidence, smoothed means."""
    dynamics, emission = Regression(LATENT, A.shape[1], "A"), Regression(FEATURES, C.shape[1], "C", "diagonal")
    A, precision, C, r, x, u = (torch.from_numpy(v) for v in (A, np.linalg.inv(Q), C, r, x, u))
    s = dynamics.family.statistic({"A": A, "A_precision_cholesky": torch.linalg.cholesky(precision)})
    t = emission.family.statistic({"C": C[:, None], "C_precision_cholesky": r.rsqrt()[:, None, None]})
    fn = LinearGaussian(dynamics, emission, s, t, (1, len(x)), u[None])
    return float(fn.log_prob(x[None])[0]), fn.latents(x[None]).marginals["h"][0].numpy()


def by_statsmodels(x, u, A, Q, C, r):
    known = np.concatenate([u, np.ones((len(u), 1))], 1)
    model = KalmanSmoother(k_endog=FEATURES, k_states=LATENT)
    model.bind(np.asfortranarray(x.T))
    ahead = np.concatenate([known[1:], known[-1:]])
    parts = {"design": C[:, :LATENT], "obs_cov": np.diag(r), "transition": A[:, :LATENT], "selection": np.eye(LATENT)}
    parts |= {"state_cov": Q, "obs_intercept": C[:, LATENT:] @ known.T, "state_intercept": A[:, LATENT:] @ ahead.T}
    for name, value in parts.items():
        model[name] = value
    model.initialize_known(np.zeros(LATENT), np.eye(LATENT))
    model.tolerance = 0  # no steady state
    found = model.smooth()
    return float(found.llf), found.smoothed_state.T


def dynamax_parameters(A, Q, C, r):
    model = LinearGaussianConjugateSSM(LATENT, FEATURES, INPUTS)
    at, end = LATENT, LATENT + INPUTS
    found, properties = model.initialize(
        initial_mean=np.zeros(LATENT), initial_covariance=np.eye(LATENT), dynamics_covariance=Q,
        dynamics_weights=A[:, :at], dynamics_input_weights=A[:, at:end], dynamics_bias=A[:, end],
        emission_weights=C[:, :at], emission_input_weights=C[:, at:end], emission_bias=C[:, end],
        emission_covariance=np.diag(r),
    )  # fmt: skip
    return model, found, properties


def by_dynamax(x, u, A, Q, C, r):
    _, found, _ = dynamax_parameters(A, Q, C, r)
    smoothed = lgssm_smoother(found, jnp.asarray(x), jnp.asarray(u))
    return float(smoothed.marginal_loglik), np.asarray(smoothed.smoothed_means)


def spent(function):
    began = time.process_time()
    function()
    return time.process_time() - began


def steps_of_fitting(x, u, matrices):
    """CPU milliseconds of a step of `vb` and of a compiled EM step, with the clock's of the latter."""

    def ours(steps):
        model = LDS(LATENT, FEATURES, inputs=INPUTS)
        vb.fit(model, x[None], u=u[None], max_steps=steps, tol=0, random_seed=0, progressbar=False)

    model, found, properties = dynamax_parameters(*matrices)
    state = model.initialize_m_step_state(found, properties)

    @jax.jit
    def em(found, x, u):
        statistics, value = model.e_step(found, x, u)
        batch = jax.tree_util.tree_map(lambda s: jnp.asarray(s)[None], statistics)
        return model.m_step(found, properties, batch, state)[0], value

    arrays = jnp.asarray(x), jnp.asarray(u)
    jax.block_until_ready(em(found, *arrays))
    best = np.full(3, np.inf)
    for _ in range(ROUNDS):
        mine = (spent(lambda: ours(REPEATS + 1)) - spent(lambda: ours(1))) / REPEATS
        began = time.perf_counter()
        theirs = spent(lambda: [jax.block_until_ready(em(found, *arrays)) for _ in range(REPEATS)]) / REPEATS
        best = np.minimum(best, [mine, theirs, (time.perf_counter() - began) / REPEATS])
    return 1e3 * best


def table():
    matrices = parameters()
    x, u = simulated(STEPS, *matrices)
    gaps = np.where(np.random.default_rng(2).random(x.shape) < 0.3, np.nan, x)
    gaps[100:140] = np.nan
    yield "Errors of the log-likelihood, and the greatest of the smoothed means beside the greatest of these.\n"
    yield "| peer | data | log-likelihood | smoothed means |\n|---|---|--:|--:|"
    for name, peer, data, kind in (
        ("statsmodels", by_statsmodels, x, "complete"),
        ("statsmodels", by_statsmodels, gaps, "30 % of entries and 40 frames missing"),
        ("dynamax", by_dynamax, x, "complete"),
    ):
        (value, means), (wanted, others) = by_ppgen(data, u, *matrices), peer(data, u, *matrices)
        errors = abs(value / wanted - 1), abs(means - others).max() / abs(others).max()
        if not max(errors) < 1e-8:
            sys.exit(f"lds_peers: ppgen and {name} must agree to 1e-8 on {kind} data, got errors {errors}")
        yield f"| {name} | {kind} | {errors[0]:.0e} | {errors[1]:.0e} |"
    mine, theirs, clock = steps_of_fitting(x, u, matrices)
    yield f"\nOne step of fitting, CPU ms: ppgen's vb {mine:.0f}, dynamax's EM {theirs:.0f} ({clock:.0f} of the clock)."


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    torch.set_num_threads(1)
    sizes = f"{STEPS:,} steps, {LATENT} latent, {FEATURES} features, {INPUTS} inputs"
    lines = [f"# A linear dynamical system beside its peers\n\nBy `benchmarks/lds_peers.py`: {sizes}.\n"]
    for line in table():
        print(line, flush=True)
        lines.append(line)
    RESULT.write_text("\n".join(lines) + "\n")
