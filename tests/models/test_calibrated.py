"""Posteriors and imputed entries of mixtures and linear dynamical systems, calibrated over a thousand replications."""

import pytest
import torch
from calibration_cases import CASES, LEVELS, REPLICATIONS, calibrated, coverage


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_ranks_are_uniform_and_hidden_entries_are_covered_as_often_as_intervals_say(name):
    """A false alarm of the ranks has probability .001. Of the nine shares, each of a thousand independent entries, one
    is more than 4.1 standard errors off with probability 4e-4.
    """
    found = calibrated(name)
    assert found.ok, str(found)
    level = torch.tensor(LEVELS).double()[:, None]
    errors = (coverage(found) - level) / (level * (1 - level) / REPLICATIONS).sqrt()
    assert errors.abs().max() < 4.1, errors
