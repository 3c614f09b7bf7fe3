"""Two versions of ppgen side by side: what one of them does slower.

    python benchmarks/regression.py OLD NEW

OLD and NEW are checkouts, NEW with this file. Each round starts a fresh process for each of them, in turns; a process
repeats every piece of work and says the least seconds of the processor, with one thread; the least over all rounds
counts. Needs ``PPGEN_DATA`` for the reference posterior.
"""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROUNDS, REPEATS, ALLOWED = 5, 7, 1.05
RESULT = Path(__file__).parent / "results" / "regression.md"


def moved(*names):
    """The first of modules that there is, old names first: packages were moved once."""
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise ModuleNotFoundError(names)


def least(function, repeats=REPEATS):
    function()
    times = []
    for _ in range(repeats):
        began = time.process_time()
        function()
        times.append(time.process_time() - began)
    return min(times)


def gradients(torch, function, *tensors):
    leaves = [t.double().requires_grad_() for t in tensors]
    return lambda: torch.autograd.grad(function(*leaves).log_normalizer.sum(), leaves)


def chains(torch):
    from ppgen.messages import discrete_chain, gaussian_chain

    torch.manual_seed(0)
    for K, T in ((8, 100_000), (32, 20_000)):
        one = torch.randn(K).log_softmax(0), torch.randn(K, K).log_softmax(1), torch.randn(T, K)
        yield f"discrete chain, K = {K}, value and gradient", least(gradients(torch, discrete_chain, *one))
    for L, T, rows in ((4, 10_000, 1), (8, 1_000, 16)):
        root = torch.randn(rows, T, L, L)
        J, cross = root @ root.mT + 4 * L * torch.eye(L), torch.randn(rows, T - 1, L, L)
        h = torch.randn(rows, T, L)
        work = gradients(torch, gaussian_chain, J, cross, h)
        yield f"Gaussian chain, L = {L}, {rows} rows, value and gradient", least(work)
        chain = gaussian_chain(J.double(), cross.double(), h.double())
        yield f"Gaussian chain, L = {L}, {rows} rows, a draw", least(lambda chain=chain: chain.sample(1))


def fits(torch):
    from ppgen.inference import vb
    from ppgen.models import HMM

    torch.manual_seed(0)
    frames = torch.randn(4, 5_000, 6).double()
    gaps = torch.where(torch.rand(frames.shape) < 0.05, torch.nan, frames)

    def run(x, steps):
        vb.fit(HMM(8, 6), x, max_steps=steps, tol=0, random_seed=0, progressbar=False)

    for name, x in (("complete", frames), ("5 % missing", gaps)):
        times = []
        for _ in range(3):
            short, long = least(lambda x=x: run(x, 2), 1), least(lambda x=x: run(x, 12), 1)
            times.append((long - short) / 10)
        yield f"HMM, a step of vb, {name}", min(times)


def leapfrogs(torch):
    from posteriordb.programs import load

    density = moved("ppgen.inference.density", "ppgen.programs.density").density
    hamiltonian = moved("ppgen.inference.hamiltonian", "ppgen.inference.mcmc.hamiltonian")
    for name in ("sblrc-blr", "hmm_example-hmm_example"):
        posterior = load(name)
        target = density(posterior.program, *posterior.args)
        leapfrog = hamiltonian.Leapfrog(target, 64, dense=False, mode="traced", calls=0)
        stream = torch.Generator().manual_seed(0)
        place = leapfrog.at(target.start(64, stream, radius=0.1))
        momentum = torch.randn(place.v.shape, generator=stream, dtype=place.v.dtype)
        step = least(lambda f=leapfrog, p=place, m=momentum: f(p, m, 1e-3, 20, f.identity))
        yield f"mcmc, {name}, a leapfrog of 64 chains", step / 20


def autoencoder(torch):
    import svi

    sizes = 8, 16, 2
    x = torch.bernoulli(torch.full((svi.ROWS, 8), 0.5))
    clock = time.perf_counter
    time.perf_counter = time.process_time  # what the benchmark of svi reads
    try:
        run, _ = svi.ours(sizes, x, 64, "traced")
        yield "svi, a step of an autoencoder, traced", min(run(600) for _ in range(3))
    finally:
        time.perf_counter = clock


def measured():
    """Name of the work -> seconds, of the ppgen that is imported."""
    import torch

    torch.set_num_threads(1)
    found = {}
    for part in (chains, fits, leapfrogs, autoencoder):
        found |= dict(part(torch))
    return found


def child(checkout):
    root = Path(checkout).resolve()
    path = os.pathsep.join(map(str, (root, root / "tests", root / "benchmarks")))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "measure"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return json.loads(found.splitlines()[-1])


def main(checkouts):
    best = [{}, {}]
    for _ in range(ROUNDS):
        for known, checkout in zip(best, checkouts, strict=True):
            known |= {name: min(value, known.get(name, value)) for name, value in child(checkout).items()}
    text = "# This version beside the one before\n\nBy `benchmarks/regression.py`, CPU ms, one thread.\n\n"
    text += "| work | before | now | ratio |\n|---|--:|--:|--:|\n"
    for name, before in best[0].items():
        ratio = best[1][name] / before
        text += (
            f"| {name} | {1e3 * before:.3g} | {1e3 * best[1][name]:.3g} | {ratio:.2f}{' (!)' * (ratio > ALLOWED)} |\n"
        )
    print(text)
    RESULT.write_text(text)


if __name__ == "__main__":
    if sys.argv[1:] == ["measure"]:
        print(json.dumps(measured()))
    else:
        main(sys.argv[1:])
