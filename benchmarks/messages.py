"""Message passing beside its peers, in one process: value and gradient with respect to everything, float64.

Needs ``pip install ppgen[bench]``, and Linux for the memory. Prints a table and writes it to
``benchmarks/results/messages.md``; every figure is the least of several runs after warming up, the peers compiled.
"""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

from ppgen.messages import discrete_chain, gaussian_chain

RESULT = Path(__file__).parent / "results" / "messages.md"
STEPS = 100_000
MEMORY = """
import torch
from ppgen.messages import discrete_chain
def resident(kind):
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith(kind)).split()[1])
small = torch.zeros(4, 50, dtype=torch.float64).requires_grad_()
A = torch.randn(50, 50, dtype=torch.float64).requires_grad_()
torch.autograd.grad(discrete_chain(A[0], A, small).log_normalizer, (small, A))
x = torch.randn(1_000_000, 50, dtype=torch.float64).requires_grad_()
before = resident("VmRSS") - x.numel() * 8
torch.autograd.grad(discrete_chain(A[0], A, x).log_normalizer, (x, A))
print((resident("VmHWM") - before) / (x.numel() * 8))
"""


def best(function, runs=7):
    function()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def hidden_markov_chain(states):
    generator = torch.Generator().manual_seed(states)
    initial, transition, potential = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((states,), (states, states), (STEPS, states))
    )
    return initial.log_softmax(-1), transition.log_softmax(-1), potential


def ours(initial, transition, potential):
    leaves = [t.clone().requires_grad_() for t in (initial, transition, potential)]
    return lambda: torch.autograd.grad(discrete_chain(*leaves).log_normalizer, leaves)


def dynamax(initial, transition, potential):
    import jax

    jax.config.update("jax_enable_x64", True)
    from dynamax.hidden_markov_model.inference import hmm_filter

    arrays = [jax.numpy.asarray(t.numpy()) for t in (initial.exp(), transition.exp(), potential)]
    function = jax.jit(jax.value_and_grad(lambda *a: hmm_filter(*a).marginal_loglik, (0, 1, 2)))
    return lambda: jax.block_until_ready(function(*arrays))


def hmmlearn(initial, transition, potential):
    import numpy as np
    from hmmlearn import _hmmc

    start, move, frames = initial.exp().numpy(), transition.exp().numpy(), potential.numpy()

    def expectation_step():
        value, forward = _hmmc.forward_log(start, move, frames)
        backward = _hmmc.backward_log(start, move, frames)
        gamma = forward + backward
        gamma = np.exp(gamma - np.logaddexp.reduce(gamma, axis=1, keepdims=True))
        return value, gamma, _hmmc.compute_log_xi_sum(forward, move, backward, frames)

    return expectation_step


def agree(chain):
    """Refuse to time what does not compute the same."""
    value, theirs = discrete_chain(*chain).log_normalizer.item(), float(dynamax(*chain)()[0])
    if not abs(value - theirs) <= 1e-9 * abs(value):
        sys.exit(f"messages: the evidence must be the peer's {theirs}, got {value}; one of the two is wrong")


def discrete_rows():
    for states in (8, 32):
        chain = hidden_markov_chain(states)
        agree(chain)
        threads = torch.get_num_threads()
        mine = {}
        for count in sorted({1, threads}):
            torch.set_num_threads(count)
            mine[count] = best(ours(*chain))
        for name, peer in (("dynamax value_and_grad", dynamax), ("hmmlearn E-step", hmmlearn)):
            theirs = best(peer(*chain), runs=3)
            for count, seconds in mine.items():
                yield f"T = {STEPS:,}, K = {states}", name, theirs, count, seconds


def gaussian_rows():
    for width in (4, 10):
        steps = 10_000
        generator = torch.Generator().manual_seed(width)
        root = torch.randn(steps, width, width, generator=generator, dtype=torch.float64)
        J = root @ root.mT + 4 * width * torch.eye(width, dtype=torch.float64)
        cross = torch.randn(steps - 1, width, width, generator=generator, dtype=torch.float64)
        h = torch.randn(steps, width, generator=generator, dtype=torch.float64)
        for kind, blocks in (("varying", (J, cross)), ("constant", (J[:1].expand_as(J), cross[:1].expand_as(cross)))):
            leaves = [t.clone().requires_grad_() for t in (*blocks, h)]
            seconds = best(lambda leaves=leaves: torch.autograd.grad(gaussian_chain(*leaves).log_normalizer, leaves))
            yield f"{steps:,} | {width} | {kind} | {1e3 * seconds:.1f}"


def draws_with_gradient(observed):
    """A draw of x given y in one linear system (x' = A x + noise, y = x + noise), and its gradient, as ours and Pyro's.

    Unit noise throughout, so that both are given the same; ``observed`` weighs each row and step by one of its own,
    as missing values do, which Pyro is not asked for.
    """
    import pyro.distributions as dist

    rows, steps, width, eye = 16, 1_000, 8, torch.eye(8, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    A = (0.9 * eye + 0.02 * torch.randn(8, 8, generator=generator, dtype=torch.float64)).requires_grad_()
    y = torch.randn(rows, steps, width, generator=generator, dtype=torch.float64).requires_grad_()
    seen = torch.rand(rows, steps, width, generator=generator, dtype=torch.float64) if observed else y.new_ones(width)

    def square(x):
        return torch.autograd.grad(x.square().sum(), (A, y))

    def mine():
        inner = (eye + A.T @ A).expand(steps - 1, width, width)
        J = torch.cat([inner, eye[None]]) + torch.diag_embed(seen)
        return square(gaussian_chain(J, -A.T.expand(steps - 1, width, width), seen * y).rsample(1))

    def theirs():
        unit = dist.MultivariateNormal(torch.zeros(width, dtype=torch.float64), eye)
        noise = dist.Normal(torch.zeros_like(y), 1.0).to_event(1)
        return square(dist.GaussianHMM(unit, A.T, unit, eye, noise, duration=steps).rsample_posterior(y))

    return mine, theirs


def draw_rows():
    threads = torch.get_num_threads()
    for precisions in ("one for all rows", "one each"):
        mine, theirs = draws_with_gradient(precisions == "one each")
        for count in sorted({1, threads}):
            torch.set_num_threads(count)
            ours, peer = best(mine), best(theirs, runs=3)
            yield f"{precisions} | {1e3 * peer:.0f} | {count} | {1e3 * ours:.1f} | {peer / ours:.1f}"


def table():
    yield f"Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores, float64."
    yield f"Least of several runs; the machine's load was {os.getloadavg()[0]:.1f} when they began.\n"
    yield "## Discrete chain: value, and gradient in all three inputs\n"
    yield "| size | peer | peer, ms | threads | ppgen, ms | ratio |"
    yield "|---|---|--:|--:|--:|--:|"
    for size, name, theirs, threads, seconds in discrete_rows():
        yield f"| {size} | {name} | {1e3 * theirs:.0f} | {threads} | {1e3 * seconds:.1f} | {theirs / seconds:.1f} |"
    share = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True).stdout
    yield "\nPeak memory of value and gradient at T = 1,000,000, K = 50 (potentials included):"
    yield f"{float(share):.2f} times the potentials.\n"
    yield "## Gaussian chain: value, and gradient in all three inputs\n"
    yield "| T | L | blocks | ppgen, ms |"
    yield "|--:|--:|---|--:|"
    for row in gaussian_rows():
        yield f"| {row} |"
    yield "\n## Gaussian chain: one reparameterised draw and its gradient, 16 sequences, T = 1,000, L = 8\n"
    yield "Pyro's is `GaussianHMM.rsample_posterior`, and the same in both rows.\n"
    yield "| precisions | Pyro, ms | threads | ppgen, ms | ratio |"
    yield "|---|--:|--:|--:|--:|"
    for row in draw_rows():
        yield f"| {row} |"


if __name__ == "__main__":
    lines = []
    for line in table():
        print(line, flush=True)
        lines.append(line)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text("# Message passing\n\n" + "\n".join(lines) + "\n")
