"""Leapfrog steps of 1 to 8,192 chains in one tensor: seconds of the processor, and memory; one process, one thread.

Run with ``PPGEN_DATA`` set::

    PYTHONPATH=tests python benchmarks/chains.py [cpu|cuda]

On CUDA seconds are those of the clock, and memory is the allocator's peak.
"""

import gc
import os
import resource
import sys
import time
import warnings
from pathlib import Path

import torch
from posteriordb.programs import load

from ppgen.inference.mcmc.hamiltonian import Leapfrog
from ppgen.programs.density import density

CHAINS = (1, 64, 1024, 8192)
NAMES = ("eight_schools-eight_schools_noncentered", "sblrc-blr", "hmm_example-hmm_example")
SECONDS = 1.0  # to repeat a step for
RESULT = Path(__file__).parent / "results" / "chains-{}.md"
HEAD = """\
# Chains in one tensor

One leapfrog step (gradient and update) of all chains, by `benchmarks/chains.py` on {}: float64, traced and compiled.
"Memory" is how much the peak of the process rose over that before the first row of the posterior.

| posterior | chains | traced, ms | per chain, µs | compiled, ms | per chain, µs | memory, MB |
|---|---|---|---|---|---|---|
"""


def clock(device):
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def peak(device):
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def step_seconds(target, chains, mode):
    """Seconds of one step, the mean over about a second."""
    leapfrog = Leapfrog(target, chains, dense=False, mode=mode, calls=0)
    stream = torch.Generator(target.device).manual_seed(0)
    place = leapfrog.at(target.start(chains, stream, radius=0.1))
    momentum = torch.randn(place.v.shape, generator=stream, dtype=place.v.dtype, device=place.v.device)
    leapfrog(place, momentum, 1e-3, 3, leapfrog.identity)
    began, steps = clock(target.device), 0
    while clock(target.device) - began < SECONDS:
        leapfrog(place, momentum, 1e-3, 10, leapfrog.identity)
        steps += 10
    return (clock(target.device) - began) / steps


def main(device):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    kind = torch.cuda.get_device_name() if device.type == "cuda" else f"one core of {os.uname().machine}"
    text = HEAD.format(kind)
    print(text, end="")
    for name in NAMES:
        posterior = load(name)
        target = density(posterior.program, *posterior.args, device=device)
        gc.collect()
        before = peak(device)
        for chains in CHAINS:
            traced = step_seconds(target, chains, "traced")
            memory = peak(device) - before
            compiled = step_seconds(target, chains, "compiled")
            cells = [1e3 * traced, 1e6 * traced / chains, 1e3 * compiled, 1e6 * compiled / chains]
            text += f"| {name} | {chains:,} | " + " | ".join(f"{v:.3g}" for v in cells) + f" | {memory:.0f} |\n"
            print(text.splitlines()[-1], flush=True)
    Path(str(RESULT).format(device.type)).write_text(text)


if __name__ == "__main__":
    main(torch.device(sys.argv[1] if len(sys.argv) > 1 else "cpu"))
