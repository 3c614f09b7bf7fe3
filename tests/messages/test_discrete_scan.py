"""The scan in torch operations, which other devices use, held against the compiled kernels on the CPU."""

import math

import pytest
import torch
from enumeration import random_chain

from ppgen.messages.discrete import _dispatch as _discrete
from ppgen.messages.discrete import _scan


def flat(steps, states, rows, varying=False, scale=1.0):
    initial, transition, potential = random_chain(steps, states, rows, varying=varying, scale=scale)
    return [initial, transition if varying else transition[:, None], potential, torch.full((rows,), steps)]


def assert_agree(chain, weights=None):
    for ours, theirs in zip(
        _scan.compute(*chain, weights, True), _discrete.compute(*chain, weights, True), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-10)
    torch.testing.assert_close(_scan.compute(*chain, None, False)[0], _discrete.compute(*chain, None, False)[0])


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize(("steps", "states"), [(1, 3), (2, 1), (2, 3), (3, 5), (50, 3), (51, 3), (30, 9)])
def test_the_scan_equals_the_kernels(steps, states, varying):
    if varying and steps == 1:
        pytest.skip("one step has no transition")
    assert_agree(flat(steps, states, 3, varying), torch.tensor([1.0, 0.5, -2.0], dtype=torch.float64))


@pytest.mark.parametrize("varying", [False, True])
def test_the_scan_stops_at_the_length(varying):
    chain = flat(40, 4, 5, varying)
    chain[3] = torch.tensor([40, 0, 1, 17, 39])
    chain[2][3, 17:] = 1e3
    assert_agree(chain)


@pytest.mark.parametrize("scale", [1.0, 300.0, 1e4])
@pytest.mark.parametrize("varying", [False, True])
def test_the_scan_is_exact_where_states_are_forbidden(varying, scale):
    chain = flat(51, 4, 3, varying, scale)
    chain[1] = chain[1].masked_fill(
        torch.rand(chain[1].shape, generator=torch.Generator().manual_seed(1)) < 0.4, -math.inf
    )
    chain[2][0, 20] = -math.inf
    assert_agree(chain)


def test_the_scan_shares_one_transition_among_the_batch():
    chain = flat(20, 3, 4)
    chain[1] = chain[1][:1]
    assert_agree(chain)


@pytest.mark.slow
def test_the_scan_equals_the_kernels_on_a_long_chain():
    assert_agree(flat(200_000, 4, 1))
