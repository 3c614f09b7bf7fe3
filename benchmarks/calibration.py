"""Calibration of all engines: seconds of the processor for 1000 replications in one batch and one by one, and verdicts.

    python benchmarks/calibration.py [REPLICATIONS]

One by one is measured on a few replications and scaled up. One thread; figures compare within one run only.
"""

import math
import os
import sys
import time

os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}

import pyro
import pyro.distributions as dist
import torch

from ppgen.emissions.autoregressive import Autoregressive
from ppgen.emissions.gaussian import Gaussian
from ppgen.inference.calibration import calibrate
from ppgen.models import HMM

INPUTS = 3 * torch.linalg.qr(torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
ALONE = {"chains": 4, "tune": 200, "draws": 100, "sampler": "chees", "compile": "traced"}


def regression(inputs, y):
    weights = pyro.sample("weights", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("row", len(inputs)):
        pyro.sample("y", dist.Normal(inputs @ weights, 1.0), obs=y)


def sequence(steps):
    x = torch.zeros(1, steps, 1, dtype=torch.float64)
    x[0, 2:4] = math.nan
    return x


HIDDEN_MARKOV = HMM(2, emission=Gaussian(1, covariance="diagonal"), stickiness=5.0)
CASES = [
    ("regression", "mcmc", (regression, INPUTS, torch.zeros(20)), True, {}),
    ("regression", "mcmc", (regression, INPUTS, torch.zeros(20)), False, ALONE),
    ("regression", "svi", (regression, INPUTS, torch.zeros(20)), True, {}),
    ("regression", "svi", (regression, INPUTS, torch.zeros(20)), False, {}),
    ("autoregression", "vb", (HMM(1, emission=Autoregressive(1, lags=1)), torch.zeros(1, 12, 1)), False, {}),
    ("hidden Markov, K = 2, T = 50", "mcmc", (HIDDEN_MARKOV, sequence(50)), True, {}),
    ("hidden Markov, K = 2, T = 50", "mcmc", (HIDDEN_MARKOV, sequence(50)), False, ALONE),
    ("hidden Markov, K = 2, T = 50", "vb", (HIDDEN_MARKOV, sequence(50)), False, {}),
]


def main(replications):
    print("| model | engine | way | replications run | seconds for 1000 | verdict |\n|---|---|---|---|---|---|")
    for name, engine, program, batched, options in CASES:
        count = replications if batched or engine == "vb" else 6
        began = time.process_time()
        found = calibrate(
            *program, engine=engine, batched=batched, replications=count, options=options, random_seed=1, imputations=0
        )
        seconds = (time.process_time() - began) / count * 1000
        said = found.report.verdict if count == replications else "-"
        print(
            f"| {name} | {engine} | {'one batch' if batched else 'one by one'} | {count} | {seconds:.0f} | {said} |",
            flush=True,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
