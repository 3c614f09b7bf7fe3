"""Loadings of draws that differ by a turn of the latent space are turned to be alike."""

import torch

from ppgen.diagnostics.rotation import turns

GENERATOR = torch.Generator().manual_seed(0)


def _turns(n, L):
    return torch.linalg.qr(torch.randn(n, L, L, generator=GENERATOR, dtype=torch.float64)).Q


def test_draws_that_differ_by_a_turn_become_the_same():
    loading = torch.randn(6, 3, generator=GENERATOR, dtype=torch.float64)
    turned = loading @ _turns(50, 3)
    found = turned @ turns(turned).mT
    torch.testing.assert_close(found, found[:1].expand_as(found), rtol=0, atol=1e-10)


def test_axes_are_principal_and_mostly_positive_whatever_the_draws_were_turned_by():
    draws = torch.randn(6, 3, generator=GENERATOR, dtype=torch.float64)
    draws = draws + 0.1 * torch.randn(80, 6, 3, generator=GENERATOR, dtype=torch.float64)
    again = draws @ _turns(1, 3)
    one, two = draws @ turns(draws).mT, again @ turns(again).mT
    torch.testing.assert_close(one, two, rtol=0, atol=1e-6)
    square = one.mean(0).mT @ one.mean(0)
    torch.testing.assert_close(square, square.diagonal().diag_embed(), rtol=0, atol=1e-3)
    assert (square.diagonal().diff() < 0).all()


def test_turns_are_orthogonal_where_loadings_vanish():
    loading = torch.zeros(4, 5, 2, dtype=torch.float64)
    loading[..., 0] = torch.randn(4, 5, generator=GENERATOR, dtype=torch.float64)
    turn = turns(loading)
    torch.testing.assert_close(turn @ turn.mT, torch.eye(2, dtype=torch.float64).expand(4, 2, 2))
