"""Least bulk ESS per second at default settings, beside nutpie's (PyMC's compiled NUTS), over ten reference posteriors.

Run with ``PPGEN_DATA`` set, and ``PPGEN_NUTPIE`` the interpreter of another virtual environment, for nutpie wants
another Numba (``benchmarks/nutpie_posteriors.py`` says how to make it); names of posteriors may be given::

    PYTHONPATH=tests:. PPGEN_NUTPIE=nutpie/bin/python python benchmarks/defaults.py [NAME ...]

Nothing is set but the seed on either side: ``mcmc.fit(program, data)`` and ``nutpie.sample(compiled)``. Each run is a
process of its own. Seconds count everything after the imports: tracing or compiling, tuning, drawing. nutpie's
cache has seen another model, of one normal, and ours is empty. "Drawing" leaves out what nutpie took to compile, and
nothing of ours: no cache can do better. The same function takes the effective sizes on both sides, and the
means of nutpie's draws are held against the reference, so that its model is ours. Every library has one thread; nutpie
draws several chains at once, each in a thread of its own, as many as there are cores.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

RESULT = Path(__file__).parent / "results" / "mcmc.md"
PEER = Path(__file__).parent / "nutpie_posteriors.py"
HEADING = "## At default settings"
HEAD = """\
| posterior | ours: ESS, CPU s (clock) | nutpie | its drawing | ours / nutpie | / drawing | z |
|---|---|---|---|---|---|---|"""
FOUND = """\

{heading}

Least bulk ESS and the seconds it took, by `benchmarks/defaults.py`, which says what is run.
The ratios are of ESS per second of the processor; "z" is of the mean of nutpie's draws that is farthest from the
reference, in joint standard errors.

{lines}
"""
APART = 5.0  # joint standard errors; 70 means are all nearer with probability 0.99996 where the model is the same


def clock():
    """Seconds of the processor that this process and those it started have used, and of the clock."""
    return np.array([sum(os.times()[:4]), time.perf_counter()])


def kept():
    """What the file of results holds of ``benchmarks/mcmc.py``, and of this file."""
    found = RESULT.read_text() if RESULT.exists() else ""
    before, mark, after = found.partition(f"\n{HEADING}")
    return before, mark + after


def one(name, draws):
    """Fit with ppgen; print seconds and keep the draws."""
    from posteriordb import programs

    from ppgen.inference import mcmc

    posterior = programs.load(name)
    began = clock()
    fit = mcmc.fit(posterior.program, *posterior.args, random_seed=1, progressbar=False)
    seconds = list(clock() - began)
    np.savez(draws, **{site: value.numpy() for site, value in fit.posterior.sites.items()})
    print(json.dumps({"seconds": seconds, "chose": fit.attrs["compile"]}))


def run(command, draws, cache):
    """The JSON that a process printed, and the draws it kept."""
    folders = {"TORCHINDUCTOR_CACHE_DIR": f"{cache}/torch", "PYTENSOR_FLAGS": f"base_compiledir={cache}/pytensor"}
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    command = [command[0], "-W", "ignore", *command[1:]]
    done = subprocess.run(command, env=os.environ | folders | threads, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]), dict(np.load(draws))


def columns(sites):
    """Draws by the reference's names."""
    import torch
    from posteriordb.programs import parameters

    return {key: value.numpy() for key, value in parameters({k: torch.tensor(v) for k, v in sites.items()}).items()}


def ess(values, method="bulk"):
    from arviz_stats.base import array_stats

    return float(array_stats.ess(values, chain_axis=0, draw_axis=1, method=method))


def worst(draws, reference):
    """How far the means are from the reference's, in joint standard errors."""
    return max(
        abs(value.mean() - reference[key]["mean"])
        / math.hypot(value.std() / math.sqrt(ess(value, "mean")), reference[key]["mcse_mean"])
        for key, value in draws.items()
    )


def compare(name, folder, seed):
    """ESS and seconds of ours, of nutpie and of its drawing; our choice of a graph; nutpie's worst mean."""
    from posteriordb import programs

    cache, draws = f"{folder}/{name}", f"{folder}/draws.npz"
    shutil.copytree(seed, cache)
    own, sites = run([sys.executable, __file__, "--one", name, draws], draws, cache)
    rows = [(min(map(ess, columns(sites).values())), *own["seconds"])]
    peer = [os.environ["PPGEN_NUTPIE"], str(PEER), name, str(programs.folder() / name / "data.json"), draws]
    reference = programs.load(name).reference["parameters"]
    told, sites = run(peer, draws, cache)
    found = columns(sites)
    rows.append((min(map(ess, found.values())), *told["seconds"]))
    rows.append((rows[-1][0], *np.subtract(told["seconds"], told["compile"])))
    z = worst(found, reference)
    return rows, own["chose"], z


def prepare(folder, seed):
    """A cache that has seen another model."""
    data, draws = Path(folder, "data.json"), f"{folder}/draws.npz"
    data.write_text("{}")
    run([os.environ["PPGEN_NUTPIE"], str(PEER), "one normal", str(data), draws], draws, seed)


def main(names):
    from posteriordb.programs import CASES

    lines, table = [HEAD], []
    print(HEAD)
    with tempfile.TemporaryDirectory() as folder:
        seed = f"{folder}/seed"
        prepare(folder, seed)
        for name in names or CASES:
            rows, chose, z = compare(name, folder, seed)
            speed = np.array([[size / cpu, size / wall] for size, cpu, wall in rows])
            table.append(speed[0] / speed[1:])
            cells = [f"{size:,.0f}, {cpu:.2f} ({wall:.1f})" for size, cpu, wall in rows]
            cells += [f"{ratio:.2f}" for ratio in table[-1][:, 0]]
            cells.append(f"{z:.1f} (another model!)" if z > APART else f"{z:.1f}")
            cells[0] += f" {chose}"
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    lines += ["", *summary(np.array(table))]
    print("\n".join(lines[-3:]))
    if not names:
        RESULT.write_text(kept()[0] + FOUND.format(heading=HEADING, lines="\n".join(lines)))


def summary(table):
    means, least = np.exp(np.log(table).mean(0)), table.min(0)
    for label, mean, low in zip(("nutpie", "drawing alone"), means, least, strict=True):
        yield (
            f"- {label}: ours has {mean[0]:.1f} times its ESS per second of the processor (at worst "
            f"{low[0]:.2f}), {mean[1]:.1f} times per second of the clock (at worst {low[1]:.2f}), geometric means over "
            f"{len(table)} posteriors"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], sys.argv[3])
    else:
        main(sys.argv[1:])
