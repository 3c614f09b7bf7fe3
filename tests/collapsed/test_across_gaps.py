"""How sure answers across gaps are, against how often they are right."""

import pytest
import torch
from dense import normal

from ppgen.collapsed import HiddenMarkov
from ppgen.emissions import Autoregressive

N, T = 200, 40


def world(states, features=2, lags=1, stay=0.9):
    """Rotations towards centres of their own with narrow innovations: (model, states, frames)."""
    coefficients = torch.zeros(states, features, lags * features + 1).double()
    coefficients[:, :, :features] = 0.9 * torch.linalg.qr(normal(states, features, features)).Q
    coefficients[:, :, -1] = 0.5 * normal(states, features)
    root = 10 * torch.eye(features).double().expand(states, features, features)
    emission = Autoregressive(features, lags)
    s = emission.family.statistic({"coefficients": coefficients, "precision_cholesky": root})
    transition = torch.full((states, states), (1 - stay) / (states - 1)).double().fill_diagonal_(stay)
    z = torch.randint(states, (N, T))
    for t in range(1, T):
        z[:, t] = torch.multinomial(transition[z[:, t - 1]], 1)[:, 0]
    initial = torch.full((states,), 1 / states).double().log()
    return HiddenMarkov(initial, transition.log(), emission, s, (N, T)), z, emission.sample(s, z)


@pytest.mark.slow
@pytest.mark.parametrize(("states", "gap"), [(3, 1), (3, 2), (3, 3), (3, 5), (3, 10), (10, 8)])
def test_named_states_across_a_gap_are_right_as_often_as_they_say(states, gap):
    """z of 200 sequences below 4: false-alarm rate below 1e-4 each."""
    hmm, z, x = world(states)
    hidden = slice(20, 20 + gap)
    x[:, hidden] = torch.nan
    probability, named = hmm.latents(x).marginals["z"][:, hidden].max(-1)
    excess = (probability - (named == z[:, hidden]).double()).mean(-1)
    assert excess.mean().abs() < 4 * excess.std() / N**0.5


@pytest.mark.slow
@pytest.mark.parametrize("gap", [2, 4])
def test_intervals_of_imputed_frames_cover_what_they_say(gap):
    """Shares inside intervals of 50, 80 and 90 %, 99 draws, 200 sequences; z below 4: false-alarm rate below 2e-4."""
    hmm, _, x = world(3)
    hidden = slice(20, 20 + gap)
    seen = x.clone()
    seen[:, hidden] = torch.nan
    draws = torch.stack([hmm.impute(seen)[:, hidden] for _ in range(99)])
    below = (draws < x[:, hidden]).double().sum(0) / 99
    for level in (0.5, 0.8, 0.9):
        inside = ((below - 0.5).abs() < level / 2).double().flatten(1).mean(-1)
        assert (inside.mean() - level).abs() < 4 * inside.std() / N**0.5 + 0.01  # 100 ranks are that coarse
