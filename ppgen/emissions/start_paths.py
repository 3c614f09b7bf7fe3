"""Paths of states to start a hidden Markov model from, without a model: clusters of steps, or of windows of steps."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from torch import Tensor

from ppgen.data.arrays import exists
from ppgen.emissions.clustering import agglomerate, window_counts
from ppgen.emissions.emission import Emission
from ppgen.families.family import Natural

__all__ = ["cluster_paths", "random_segments", "window_paths"]

MOST_WINDOWS = 256  # clustered pairwise for a start; every pair costs a determinant


def cluster_paths(emission: Emission, batches: Sequence[Tensor], states: int) -> list[Int[Tensor, "N T"]]:
    """Cluster the steps that exist by what the emission makes of them; the rest gets label 0."""
    features, there = [emission.embed(x) for x in batches], [exists(x) for x in batches]
    rows = torch.cat([f[e] for f, e in zip(features, there, strict=True)]).numpy()
    chosen = rows if len(rows) <= 20_000 else rows[torch.randperm(len(rows))[:20_000].numpy()]
    distinct = len(np.unique(chosen, axis=0))
    fitted = KMeans(min(states, distinct), n_init=1, random_state=int(torch.randint(2**31 - 1, ()))).fit(chosen)
    labels = [torch.zeros(e.shape, dtype=torch.long) for e in there]
    found = torch.from_numpy(fitted.predict(rows)).long().split([int(e.sum()) for e in there])
    for z, e, part in zip(labels, there, found, strict=True):
        z[e] = part
    return labels


def window_paths(emission: Emission, batches: Sequence[Tensor], states: int, length: int) -> list[Int[Tensor, "N T"]]:
    """Cluster some windows of ``length`` steps; each window of the data then gets the cluster that explains it best."""
    windows = [_windows(x, length) for x in batches]
    pool = [w for batch in windows for w in batch]
    chosen = torch.randperm(len(pool))[:MOST_WINDOWS].tolist()
    counts = window_counts(emission, torch.stack([pool[i] for i in chosen]))
    label = agglomerate(emission, counts, states)
    total = {k: v.new_zeros(states, *v.shape[1:]).index_add(0, label, v) for k, v in counts.items()}
    s = emission.family.expected({k: v + total[k] for k, v in emission.prior(states).items()})
    with torch.no_grad():
        return [_label_windows(emission, x, s, length) for x in batches]


def _windows(x: Float[Tensor, "N T D"], length: int) -> list[Float[Tensor, "length D"]]:
    """Every window of ``length`` steps in which something is observed."""
    T = x.shape[1]
    padded = torch.nn.functional.pad(x, (0, 0, 0, -T % length), value=torch.nan)
    blocks = padded.reshape(-1, length, x.shape[-1])
    return list(blocks[~torch.isnan(blocks).all(-1).all(-1)])


def _label_windows(emission: Emission, x: Float[Tensor, "N T D"], s: Natural, length: int) -> Int[Tensor, "N T"]:
    score = emission.potential(x, s)
    N, T, K = score.shape
    score = torch.nn.functional.pad(score, (0, 0, 0, -T % length)).reshape(N, -1, length, K).sum(2)
    return score.argmax(-1).repeat_interleave(length, -1)[:, :T]


def random_segments(shape: Sequence[int], states: int) -> Int[Tensor, "N T"]:
    """Each step keeps its state with probability 0.95."""
    N, T = shape
    jump = torch.rand(N, T) < 0.05
    jump[:, 0] = True
    block = jump.cumsum(-1) - 1
    return torch.gather(torch.randint(states, (N, T)), 1, block)
