"""Switching linear dynamical systems by vb beside ``ssm``'s Laplace-EM, in one process, on data that ssm simulates.

    python benchmarks/switching_peers.py

Setting of ssm's own example: 5 states, 2 latent dimensions, 10 features, an orthogonal emission; 1,000 steps to fit
and 1,000 others held out, for five seeds. No option of ppgen is set; ssm has the settings of its example. Held-out
densities of both, and of the true parameters, come from one particle filter. ssm 0.0.1 wants cython and numpy to be
installed before it, and its import of ``autograd.scipy.misc.logsumexp`` answered by ``autograd.scipy.special``.
"""

import time
import warnings
from pathlib import Path

import numpy as np
import ssm
import torch
from scipy.optimize import linear_sum_assignment

from ppgen.collapsed.estimated import estimates
from ppgen.collapsed.switching_linear import SwitchingLinear
from ppgen.families.regression import Regression
from ppgen.inference import vb
from ppgen.models import SLDS

RESULT = Path(__file__).parent / "results" / "switching_peers.md"
STATES, LATENT, FEATURES, STEPS = 5, 2, 10, 1000
HEAD = f"""\
# Switching linear dynamical systems beside ssm

By `benchmarks/switching_peers.py`, one thread: {STATES} states, {LATENT} latent dimensions, {FEATURES} features,
simulated by ssm; {STEPS:,} steps to fit, {STEPS:,} held out. Nats a frame, held out, by one particle filter; share of
held-out steps in the matched state; milliseconds of an update (Laplace-EM: an iteration), at most 100 of each.

| seed | nats: truth | ppgen | ssm | right: truth | ppgen | ssm | ms: ppgen | ssm | updates: ppgen |
|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|
"""


def system(of):
    """The distribution of held-out data under ssm's parameters; the first state's mean and spread are made standard."""
    d, e = of.dynamics, of.emissions
    move = np.linalg.inv(np.linalg.cholesky(of.dynamics.Sigmas_init.mean(0)))
    middle = d.mu_init.mean(0)
    back = np.linalg.inv(move)  # h = back h' + middle
    A = move @ d.As @ back
    b = (move @ (d.As @ middle + d.bs - middle)[..., None])[..., 0]
    Q = move @ d.Sigmas @ move.T
    C, level = e.Cs[0] @ back, e.Cs[0] @ middle + e.ds[0]
    dynamics = Regression(LATENT, LATENT + 1, "dynamics", walk=True, states=STATES)
    emission = Regression(FEATURES, LATENT + 1, "loading", "diagonal")
    moves = dynamics.family.statistic(
        {
            "dynamics": torch.tensor(np.concatenate([A, b[..., None]], -1)),
            "dynamics_precision_cholesky": torch.linalg.cholesky(torch.linalg.inv(torch.tensor(Q))),
        }
    )
    seen = emission.family.statistic(
        {
            "loading": torch.tensor(np.concatenate([C, level[:, None]], -1))[:, None],
            "loading_precision_cholesky": torch.tensor(np.exp(-0.5 * e.inv_etas[0]))[:, None, None],
        }
    )
    initial = torch.tensor(of.init_state_distn.log_pi0).double().log_softmax(-1)
    transition = torch.tensor(of.transitions.log_Ps).double().log_softmax(-1)
    return SwitchingLinear(initial, transition, dynamics, emission, moves, seen, (1, STEPS))


def judged(distribution, x, z):
    torch.manual_seed(0)
    with estimates():
        density = float(distribution.log_prob(x)[0]) / STEPS
    return density, right(distribution.latents(x).mode["z_mode"][0].numpy(), z)


def right(found, z):
    table = np.zeros((STATES, STATES))
    np.add.at(table, (found, z), 1)
    return float(table[linear_sum_assignment(-table)].sum()) / len(z)


def one(seed):
    np.random.seed(seed)  # noqa: NPY002 (ssm draws from it)
    true = ssm.SLDS(FEATURES, STATES, LATENT, emissions="gaussian_orthog")
    train = true.sample(STEPS)[2]
    z, _, test = true.sample(STEPS)
    peer = ssm.SLDS(FEATURES, STATES, LATENT, emissions="gaussian_orthog")

    peer.initialize(train)
    started = time.perf_counter()
    peer.fit(train, method="laplace_em", variational_posterior="structured_meanfield", initialize=False,
             num_iters=100, alpha=0.0)  # fmt: skip
    peer_ms = 10 * (time.perf_counter() - started)
    mean, sd = train.mean(0), train.std(0)
    fit = vb.fit(
        SLDS(STATES, LATENT, FEATURES), ((train - mean) / sd)[None], max_steps=100, random_seed=seed, progressbar=False
    )
    scaled = ((test - mean) / sd)[None]
    density = float(fit.log_likelihood(scaled, random_seed=0).sum()) / STEPS - np.log(sd).sum()
    share = right(fit.latents(scaled)["z_mode"].to_numpy()[0], z)
    x = torch.from_numpy(test)[None]
    (exact, best), (theirs, their_share) = judged(system(true), x, z), judged(system(peer), x, z)
    steps = len(fit.history)
    ms = 1000 * fit.attrs["seconds"] / steps
    return (
        f"| {seed} | {exact:.3f} | {density:.3f} | {theirs:.3f} | {best:.3f} | {share:.3f} | {their_share:.3f} "
        f"| {ms:.0f} | {peer_ms:.0f} | {steps} |\n"
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    text = HEAD
    print(text, end="")
    for seed in range(5):
        text += one(seed)
        print(text.splitlines()[-1], flush=True)
        RESULT.write_text(text)
