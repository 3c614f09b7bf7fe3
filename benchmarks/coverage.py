"""Calibration of mixtures and linear dynamical systems, and how often imputed intervals hold what was hidden.

    PYTHONPATH=tests python benchmarks/coverage.py

Data are drawn from the prior a thousand times; three hidden entries of each are counted.
"""

import time
from pathlib import Path

import torch
from calibration_cases import CASES, REPLICATIONS, calibrated, coverage

RESULT = Path(__file__).parent / "results" / "coverage.md"
HEAD = f"""\
# Calibration and coverage

By `benchmarks/coverage.py`: {REPLICATIONS:,} replications each. Shares of {3 * REPLICATIONS:,} hidden entries, three of
a replication, inside their central intervals; standard errors are at most .016, .013 and .007. CPU seconds, one thread.

| case | verdict | 50 % | 80 % | 95 % | s |
|---|---|--:|--:|--:|--:|
"""


def row(name):
    began = time.process_time()
    found = calibrated(name)
    shares = " | ".join(f"{share:.3f}" for share in coverage(found).mean(1))
    verdict = found.report.verdict.rstrip(".")
    return f"| {name} | {verdict} | {shares} | {time.process_time() - began:.0f} |\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    text = HEAD
    print(text, end="")
    for name in CASES:
        text += row(name)
        print(text.splitlines()[-1], flush=True)
        RESULT.write_text(text)
