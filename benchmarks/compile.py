"""The default's choice between a traced and a compiled graph, beside both, on twelve programs and three lengths of run.

Run with ``PPGEN_DATA`` set; names of programs may be given::

    PYTHONPATH=tests:. python benchmarks/compile.py [NAME ...]

The programs are the ten of ``tests/posteriordb/programs.py``, a hidden Markov model (K = 3, T = 2,000) and a
hierarchical regression (not centred, a quarter of the outcomes missing). The lengths are 100, 1,000 and 4,000 draws of
each chain. Every run is a process of its own. Cold: torch's cache is an empty folder; warm: it holds the graph of this
program. Seconds are those of the processor, compilers included, and of the clock in brackets; ``ratio`` is the
default's over the better mode's.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time

LENGTHS = (100, 1000, 4000)
HEAD = """\
| program | draws | cache | traced | compiled | default | chose | ratio |
|---|---|---|---|---|---|---|---|"""


def mixed(y, u, group, groups):
    import pyro
    import pyro.distributions as dist
    import torch

    seen = ~torch.isnan(y)
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    tau = pyro.sample("tau", dist.HalfNormal(torch.ones(2)).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
    with pyro.plate("group", groups):
        away = pyro.sample("away", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    effect = mu + tau * away
    with pyro.plate("row", len(y)):
        mean = effect[group, 0] + effect[group, 1] * u
        pyro.sample("y", dist.Normal(mean, sigma).mask(seen), obs=torch.where(seen, y, 0.0))


def hmm(x):
    import pyro
    import pyro.distributions as dist
    import torch

    from ppgen.messages import discrete_chain

    ones = torch.ones(3)
    mu = pyro.sample("mu", dist.Normal(torch.tensor([-2.0, 0.0, 2.0]), 0.5).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(-0.7 * ones, 0.5).to_event(1))
    initial = pyro.sample("initial", dist.Dirichlet(ones))
    move = pyro.sample("move", dist.Dirichlet(torch.ones(3, 3)).to_event(1))
    emitted = dist.Normal(mu, sigma).log_prob(x[:, None])
    pyro.factor("data", discrete_chain((initial @ move).log(), move.log(), emitted).log_normalizer)


def load(name):
    """A program and its arguments."""
    import numpy as np
    import torch
    from posteriordb import programs

    random = np.random.default_rng(1)
    if name == "mixed":
        group = torch.arange(12).repeat_interleave(20)
        u, effect = (
            torch.tensor(random.standard_normal(240)),
            torch.tensor(random.normal([1, 0.5], [0.55, 0.3], (12, 2))),
        )
        y = effect[group, 0] + effect[group, 1] * u + 0.7 * torch.tensor(random.standard_normal(240))
        return mixed, (torch.where(torch.tensor(random.random(240) < 0.25), math.nan, y), u, group, 12)
    if name == "hmm":
        z = [0]
        for _ in range(1999):
            z.append(random.choice(3, p=(0.05 + 0.85 * np.eye(3))[z[-1]]))
        return hmm, (torch.tensor(np.array([-2.0, 0.0, 2.0])[z] + 0.7 * random.standard_normal(2000)),)
    posterior = programs.load(name)
    return posterior.program, posterior.args


def clock():
    """Seconds of the processor that this process and those it started have used."""
    return sum(os.times()[:4])


def one(name, draws, mode):
    """Print the seconds of one fit."""
    from ppgen.inference import mcmc

    program, args = load(name)
    cpu, wall = clock(), time.perf_counter()
    fit = mcmc.fit(program, *args, draws=draws, compile=mode, random_seed=1, progressbar=False)
    seconds = clock() - cpu, time.perf_counter() - wall
    print(json.dumps([*seconds, fit.attrs["compile"], fit.attrs["compile_reason"]]))


def timed(name, draws, mode, cache):
    """One fit in a process of its own, with torch's cache in a folder."""
    given = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__, "--one", name, str(draws), mode]
    return json.loads(subprocess.run(command, env=given, capture_output=True, text=True, check=True).stdout)


def main(names):
    print(HEAD)
    worst = 0.0
    for name in names:
        for draws in LENGTHS:
            with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
                traced = timed(name, draws, "traced", first)
                runs = {"cold": (timed(name, draws, "compiled", first), timed(name, draws, "auto", second))}
                runs["warm"] = (timed(name, draws, "compiled", first), timed(name, draws, "auto", first))
            for cache, (compiled, default) in runs.items():
                ratio = default[0] / min(traced[0], compiled[0])
                worst = max(worst, ratio)
                cells = [f"{run[0]:.1f} ({run[1]:.1f})" for run in (traced, compiled, default)]
                row = " | ".join([name, str(draws), cache, *cells, default[2], f"{ratio:.2f}"])
                print(f"| {row} |", flush=True)
    print(f"\nWorst ratio {worst:.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        from posteriordb.programs import CASES

        main(sys.argv[1:] or [*CASES, "hmm", "mixed"])
