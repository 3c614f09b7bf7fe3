"""Paths of a discrete chain: the operators behind draws and modes."""

import itertools

import numpy as np
import pytest
import torch
from torch.func import vmap

from ppgen.messages.discrete import _dispatch as _discrete
from ppgen.messages.discrete import _draws as _discrete_draws
from ppgen.messages.discrete._exact import filter_exactly


@pytest.mark.parametrize("shared", list(itertools.product([True, False], repeat=4)))
@pytest.mark.parametrize("many", [True, False], ids=["varying", "same"])
def test_draws_and_modes_fold_a_vmap_into_their_batch(shared, many):
    """Of one chain or many, in any axis: what each would be alone, for the same uniform numbers."""
    C, B, T, K, n = 3, 2, 5, 3, 4
    shapes = [(B, K), (B, T - 1 if many else 1, K, K), (B, T, K)]
    inputs = [torch.randn(*([] if same else [C]), *s).double() for s, same in zip(shapes, shared, strict=False)]
    lengths = torch.tensor([5, 3]) if shared[3] else torch.tensor([[5, 3], [1, 5], [2, 4]])
    uniforms = torch.rand(n, C, B, T, dtype=torch.float64)
    dims = [None if same else 0 for same in shared]
    drawn = vmap(_discrete.sample, in_dims=(*dims, 1), out_dims=1)(*inputs, lengths, uniforms)
    each = [[t if same else t[c] for t, same in zip([*inputs, lengths], shared, strict=True)] for c in range(C)]
    alone = torch.stack([_discrete.sample(*one, uniforms[:, c]) for c, one in enumerate(each)], 1)
    assert drawn.equal(alone)
    if not all(shared):
        best = vmap(_discrete.mode, in_dims=tuple(dims))(*inputs, lengths)
        assert best.equal(torch.stack([_discrete.mode(*one) for one in each]))


def test_paths_from_probabilities_are_those_from_logarithms():
    """For the same uniform numbers, but for ties in the last digit."""
    B, T, K = 4, 200, 5
    a, A, x = torch.randn(B, K).double(), 3 * torch.randn(B, T - 1, K, K).double(), 3 * torch.randn(B, T, K).double()
    uniforms = torch.rand(7, B, T, dtype=torch.float64)
    states = _discrete.sample(a, A, x, torch.full((B,), T), uniforms)
    messages, exactly = np.empty((T, K)), np.empty((7, T), dtype=np.int64)
    for b in range(B):
        filter_exactly(a[b].numpy(), A[b].numpy(), x[b].numpy(), T, True, messages)
        _discrete_draws._trace_back_exactly(A[b].numpy(), messages, T, uniforms[:, b].numpy(), exactly)
        assert (states[:, b].numpy() == exactly).all()
