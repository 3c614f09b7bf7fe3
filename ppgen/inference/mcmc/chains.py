"""The number of chains that keeps a machine busy: many where a gradient is overhead, fewer where every chain counts.

The count is a function of the program and the device, never of the clock: the same run must give the same draws.
"""

import torch

from ppgen.programs.density import Density
from ppgen.programs.written import Written

__all__ = ["LEAST", "default_chains"]

MOST_CHAINS = {"chees": {"cpu": 64, "cuda": 1024}, "nuts": {"cpu": 4, "cuda": 64}}
LEAST = {"chees": 16, "nuts": 4}  # chains that learn together what ChEES needs; and that check each other
ENOUGH = {"cpu": 5e7, "cuda": 2e9}  # numbers a gradient of all chains may write: about .1 s, and about 4 GB at once


def default_chains(target: Density, sampler: str) -> int:
    """Chains of a run that names no number: the most for the device, halved while a gradient of all is too large."""
    kind = "cuda" if target.device.type == "cuda" else "cpu"
    count, cost = MOST_CHAINS[sampler][kind], written(target)
    while count > LEAST[sampler] and count * cost > ENOUGH[kind]:
        count //= 2
    return count


def written(target: Density) -> int:
    """Numbers that the operators of a gradient write for each chain more."""
    v = target.start(2, torch.Generator().manual_seed(0))
    total = []
    for rows in (1, 2):
        with Written() as count, torch.no_grad():
            target.value_and_grad(v[:rows])
        total.append(count.numbers)
    return total[1] - total[0]
