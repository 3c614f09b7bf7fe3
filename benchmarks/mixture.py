"""Gaussian mixtures: a step of `vb` beside scikit-learn's EM, with entries missing, and of a million rows.

    python benchmarks/mixture.py

Seconds of the processor, one thread, float64. A step is the difference between a long run and a short one; the least
of rounds in which all contenders take turns. Memory is how far the peak of a fresh process rose over what it held, data
included, before the fit.
"""

import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.mixture import GaussianMixture

from ppgen.inference import vb
from ppgen.models import GMM

ROWS, FEATURES, COMPONENTS = 100_000, 16, 20
MANY, FEW, BATCH = 1_000_000, 8, 10_000
ROUNDS, HIDDEN = 3, 0.3
RESULT = Path(__file__).parent / "results" / "mixture.md"


def simulated(rows, features, components, hidden=0.0):
    """Rows of well separated components of unlike shapes, in units of about one."""
    rng = np.random.default_rng(0)
    centers = 2 * rng.normal(size=(components, features))
    shapes = np.eye(features) + 0.3 * rng.normal(size=(components, features, features))
    x = np.empty((rows, features))
    for part in np.array_split(np.arange(rows), -(-rows // 50_000)):
        z = rng.integers(components, size=len(part))
        x[part] = centers[z] + np.einsum("nij,nj->ni", shapes[z], rng.normal(size=(len(part), features)))
        x[part] = np.where(rng.random((len(part), features)) < hidden, np.nan, x[part] / 2.5)
    return x


def spent(function):
    began = time.process_time()
    function()
    return time.process_time() - began


def step(run, steps):
    """Seconds of one step of ``run(steps)``."""
    return (spent(lambda: run(steps + 1)) - spent(lambda: run(1))) / steps


def ours(x, components=COMPONENTS, batch=None):
    def run(steps):
        model = GMM(components, x.shape[1])
        vb.fit(model, x, batch_size=batch, max_steps=steps, tol=0, random_seed=0, progressbar=False)

    return run


def theirs(x):
    def run(steps):
        GaussianMixture(COMPONENTS, max_iter=steps, tol=0, init_params="random_from_data", random_state=0).fit(x)

    return run


def least(*runs, steps=8):
    return np.min([[step(run, steps) for run in runs] for _ in range(ROUNDS)], 0)


def memory(hidden):
    """Megabytes of the data of a million rows, and by how much a fit in minibatches raises the peak over them."""
    x = simulated(MANY, FEW, 10, hidden)
    ours(x[:BATCH], 10, 1000)(2)  # kernels are loaded
    status = Path("/proc/self/status").read_text()
    before = int(status.partition("VmRSS:")[2].split()[0])
    ours(x, 10, BATCH)(20)
    print(x.nbytes / 2**20, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10)


def table():
    complete, gappy = simulated(ROWS, FEATURES, COMPONENTS), simulated(ROWS, FEATURES, COMPONENTS, HIDDEN)
    seconds = least(ours(complete), theirs(complete), ours(gappy))
    yield f"\n## A step of {ROWS:,} rows, {FEATURES} features, {COMPONENTS} components, full covariance\n"
    yield "| | CPU ms | beside ppgen's of complete data |\n|---|--:|--:|"
    names = ("ppgen, vb", "scikit-learn, EM", f"ppgen, {HIDDEN:.0%} of entries missing")
    for name, value in zip(names, seconds, strict=True):
        yield f"| {name} | {1e3 * value:.0f} | {value / seconds[0]:.2f} |"
    many = [simulated(MANY, FEW, 10, hidden) for hidden in (0.0, HIDDEN)]
    seconds = least(*(ours(x, 10, BATCH) for x in many), steps=150)
    yield f"\n## Minibatches of {BATCH:,} of {MANY:,} rows, {FEW} features, 10 components\n"
    yield "| | CPU ms a step | data, MB | peak over them, MB |\n|---|--:|--:|--:|"
    for name, hidden, value in zip(("complete", f"{HIDDEN:.0%} missing"), (0.0, HIDDEN), seconds, strict=True):
        command = [sys.executable, __file__, "memory", str(hidden)]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        yield f"| {name} | {1e3 * value:.1f} | {float(found[0]):.0f} | {float(found[1]):.0f} |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if sys.argv[1:2] == ["memory"]:
        memory(float(sys.argv[2]))
        sys.exit()
    lines = []
    for line in table():
        print(line, flush=True)
        lines.append(line)
    RESULT.write_text(
        "# Gaussian mixtures\n\nBy `benchmarks/mixture.py`, where it is said what is run.\n" + "\n".join(lines) + "\n"
    )
