"""The evidence of a linear dynamical system with its gradient: ppgen's distribution beside one written by hand.

    python benchmarks/lds.py

By hand, blocks of the precision are built from the parameters and given to `gaussian_chain`, whose log-normaliser is
differentiated: nothing is general (no inputs, no missing entries, sequences of one length). Milliseconds of the
processor, one thread, float64; the least of several runs that take turns. Both are checked against each other.
"""

import math
import sys
import time
from pathlib import Path

import torch

from ppgen.collapsed.linear_gaussian import LinearGaussian
from ppgen.families.regression import Regression
from ppgen.messages import gaussian_chain

SIZES = ((1, 10_000, 4, 10), (16, 1_000, 8, 10), (64, 100, 2, 5), (1, 300, 2, 4))  # sequences, steps, latent, features
RUNS = 9
RESULT = Path(__file__).parent / "results" / "lds.md"
HEAD = """\
# Evidence of a linear dynamical system and its gradient

Milliseconds by `benchmarks/lds.py`, where it is said what is run.

| sequences | steps | latent | features | by hand | ppgen | ratio |
|--:|--:|--:|--:|--:|--:|--:|
"""


def parameters(latent, features):
    """A (L, L + 1), the factor of the precision of its noise, C (D, 1, L + 1) and (D, 1, 1) of that of the frames."""
    turn = 0.95 * torch.linalg.qr(torch.randn(latent, latent).double())[0]
    dynamics = torch.cat([turn, 0.1 * torch.randn(latent, 1).double()], 1)
    root = torch.linalg.cholesky(4 * torch.eye(latent).double() + 0.5)
    return dynamics, root, torch.randn(features, 1, latent + 1).double(), torch.full((features, 1, 1), 1.5).double()


def by_hand(x, A, root, C, noise_root):
    """Log evidence from blocks of the joint precision of the states."""
    (_, T, D), L = x.shape, len(A)
    F, b, H, d = A[:, :L], A[:, L], C[:, 0, :L], C[:, 0, L]
    P, r = root @ root.mT, noise_root[:, 0, 0].square()
    eye = torch.eye(L, dtype=x.dtype)
    seen, moved = H.mT @ (r[:, None] * H), F.mT @ P @ F
    middle, first, last = seen + moved + P, seen + moved + eye, seen + P
    J = torch.cat([first[None], middle.expand(T - 2, L, L), last[None]])
    pull = (x - d) @ (r[:, None] * H)
    into, out = (P @ b).expand(T - 1, L), -(F.mT @ P @ b).expand(T - 1, L)
    zero = b.new_zeros(1, L)
    h = pull + torch.cat([zero, into]) + torch.cat([out, zero])
    value = gaussian_chain(J, (-F.mT @ P).expand(T - 1, L, L), h).log_normalizer
    steps = root.diagonal().log().sum() - b @ P @ b / 2
    frames = T * r.log().sum() / 2 - ((x - d).square() @ r).sum(-1) / 2
    return value + frames + (T - 1) * steps - T * (L + D) / 2 * math.log(2 * math.pi)


def general(x, A, root, C, noise_root):
    """The same by the distribution that every model uses."""
    (_, _, D), L = x.shape, len(A)
    dynamics, emission = Regression(L, L + 1, "A"), Regression(D, L + 1, "C", "diagonal")
    s = dynamics.family.statistic({"A": A, "A_precision_cholesky": root})
    t = emission.family.statistic({"C": C, "C_precision_cholesky": noise_root})
    return LinearGaussian(dynamics, emission, s, t, x.shape[:2]).log_prob(x)


def timed(function, x, leaves):
    began = time.process_time()
    value = function(x, *leaves).sum()
    gradient = torch.autograd.grad(value, leaves)
    return time.process_time() - began, value, gradient


def row(rows, steps, latent, features):
    torch.manual_seed(0)
    x = torch.randn(rows, steps, features).double()
    leaves = [t.requires_grad_() for t in parameters(latent, features)]
    best = [math.inf, math.inf]
    for _ in range(RUNS):
        found = [timed(function, x, leaves) for function in (by_hand, general)]
        best = [min(old, new[0]) for old, new in zip(best, found, strict=True)]
    (_, a, one), (_, b, two) = found
    same = [torch.allclose(g, h, rtol=1e-7) for g, h in zip(one, two, strict=True)]
    if not torch.allclose(a, b, rtol=1e-9) or not all(same):
        sys.exit(f"lds: the two evidences must agree, got {a.item()} and {b.item()}, gradients {same}")
    cells = (rows, f"{steps:,}", latent, features, f"{1e3 * best[0]:.2f}", f"{1e3 * best[1]:.2f}")
    return "| " + " | ".join(map(str, cells)) + f" | {best[1] / best[0]:.2f} |\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    text = HEAD + "".join(row(*size) for size in SIZES)
    print(text)
    RESULT.write_text(text)
