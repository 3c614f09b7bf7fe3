"""Seconds of one SVI step: ours, Pyro's ``SVI.step``, and the same bound by hand in PyTorch, in one process.

    python benchmarks/svi.py

A variational autoencoder with Bernoulli observations, float32, Adam, one particle, minibatches of one data set, the
divergence in closed form where it is by hand and in ours. A step includes taking the minibatch and the optimiser's
step. Tracing and compiling are not in it; they are given beside it. Rounds of all contenders take turns; the median
round counts.
"""

import platform
import statistics
import time
from functools import partial
from pathlib import Path
from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from ppgen.inference import svi
from ppgen.model import Model

SIZES = {"784-400-20, batch 128": (784, 400, 20, 128, 300), "8-16-2, batch 64": (8, 16, 2, 64, 2000)}
ROWS, ROUNDS = 4096, 3
RESULT = Path(__file__).parent / "results" / "svi.md"
HEAD = """\
| autoencoder | Pyro | PyTorch | traced | compiled | PyTorch / compiled | Pyro / compiled | trace, compile (s) |
|---|---|---|---|---|---|---|---|"""
INTRODUCTION = """\
# One step of SVI beside its peers

Microseconds a step by `benchmarks/svi.py`: one process, {} thread(s), float32, torch {}, {}. What is run is said at the
top of that file.

"""


class Autoencoder(Model):
    """x ~ Bernoulli(decoder(h)), h ~ N(0, 1); the encoder gives the guide's mean and scale."""

    data_dims = ("row", "feature")
    dims = {"h": ("row", "latent")}

    def __init__(self, features, hidden, latent):
        super().__init__()
        self.config_given = {"features": features, "hidden": hidden, "latent": latent}
        self.latent = latent
        self.trunk = nn.Sequential(nn.Linear(features, hidden), nn.Softplus())
        self.centre, self.log_scale = nn.Linear(hidden, latent), nn.Linear(hidden, latent)
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.Softplus(), nn.Linear(hidden, features))

    @property
    def config(self):
        return self.config_given

    def encoded(self, x):
        trunk = self.trunk(x)
        return self.centre(trunk), self.log_scale(trunk).exp()

    def model(self, x, *, u=None, total=None):
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            h = pyro.sample("h", dist.Normal(x.new_zeros(len(x), self.latent), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(h)).to_event(1), obs=x)

    def guide(self, x, *, u=None, total=None):
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            pyro.sample("h", dist.Normal(*self.encoded(x)).to_event(1))


def by_pyro(sizes, x, batch):
    """Pyro's own step; without validation, as a careful user runs it."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    model = Autoencoder(*sizes)

    def program(x):
        pyro.module("autoencoder", model)
        model.model(x, total=ROWS)

    def guide(x):
        pyro.module("autoencoder", model)
        model.guide(x, total=ROWS)

    step = SVI(program, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())

    def run(steps):
        with pyro.validation_enabled(False):
            for _ in range(steps):
                step.step(x[torch.randint(ROWS, (batch,))])

    return run


def by_hand(sizes, x, batch):
    """The same bound in plain PyTorch."""
    torch.manual_seed(0)
    model = Autoencoder(*sizes)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def run(steps):
        for _ in range(steps):
            rows = x[torch.randint(ROWS, (batch,))]
            centre, scale = model.encoded(rows)
            logits = model.decoder(centre + scale * torch.randn_like(scale))
            fit = -F.binary_cross_entropy_with_logits(logits, rows, reduction="sum")
            divergence = 0.5 * (centre.square() + scale.square() - 2 * scale.log() - 1).sum()
            loss = (divergence - fit) * (ROWS / batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()

    return run


class Timed(torch.optim.Adam):
    """Adam that notes when each of its steps begins."""

    clock: ClassVar[list[float]] = []

    def step(self, closure=None):
        self.clock.append(time.perf_counter())
        return super().step(closure)


def ours(sizes, x, batch, mode):
    """Seconds of a step of a run, and of tracing and compiling."""
    spent = {}

    def run(steps):
        Timed.clock.clear()
        fit = svi.fit(
            Autoencoder(*sizes), x, batch_size=batch, lr=1e-3, max_steps=steps + 21, early_stopping=False, compile=mode,
            optimizer=partial(Timed, fused=True), random_seed=0, progressbar=False, draws=1,
        )  # fmt: skip
        spent.update(fit.attrs["compile_seconds"])
        return (Timed.clock[-1] - Timed.clock[20]) / steps

    return run, spent


def per_step(run, steps):
    """Seconds of a step of a plain loop."""
    run(20)
    began = time.perf_counter()
    run(steps)
    return (time.perf_counter() - began) / steps


def row(name):
    """Measure one size."""
    *sizes, batch, steps = SIZES[name]
    x = torch.bernoulli(torch.full((ROWS, sizes[0]), 0.5))
    loops = {"pyro": by_pyro(sizes, x, batch), "hand": by_hand(sizes, x, batch)}
    graphs = {mode: ours(sizes, x, batch, mode) for mode in ("traced", "compiled")}
    found = {name: [] for name in (*loops, *graphs)}
    for _ in range(ROUNDS):
        for label, run in loops.items():
            found[label].append(per_step(run, steps))
        for label, (run, _) in graphs.items():
            found[label].append(run(steps))
    median = {label: statistics.median(values) * 1e6 for label, values in found.items()}
    spent = graphs["compiled"][1]
    best = median["compiled"]
    return (
        f"| {name} | {median['pyro']:.0f} | {median['hand']:.0f} | {median['traced']:.0f} | {best:.0f} | "
        f"{median['hand'] / best:.2f} | {median['pyro'] / best:.2f} | {spent['trace']:.1f}, {spent['compile']:.1f} |"
    )


def main():
    lines = [HEAD]
    for name in SIZES:
        lines.append(row(name))
        print(lines[-1], flush=True)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    text = INTRODUCTION.format(torch.get_num_threads(), torch.__version__.split("+")[0], machine.split(",")[0])
    RESULT.write_text(text + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
