import itertools

import pytest
import torch
from torch.func import vmap

from ppgen.emissions._simulation import simulate


@pytest.mark.parametrize("shared", list(itertools.product([True, False], repeat=4))[1:])
def test_an_autoregression_folds_a_vmap_into_its_batch(shared):
    """Whichever of its inputs the draws share: what each would be alone."""
    S, N, H, K, D, L = 3, 2, 4, 3, 2, 2
    shapes = [(K, D, L * D + 1), (N, H), (N, H, D), (N, L, D)]
    inputs = [torch.randn(*([] if same else [S]), *s).double() for s, same in zip(shapes, shared, strict=True)]
    inputs[1] = torch.randint(K, inputs[1].shape)
    dims = tuple(None if same else 0 for same in shared)
    found = vmap(simulate, in_dims=dims)(*inputs)
    alone = [simulate(*(t if same else t[s] for t, same in zip(inputs, shared, strict=True))) for s in range(S)]
    assert found.equal(torch.stack(alone))
