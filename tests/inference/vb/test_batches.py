import pytest
import torch

from ppgen.inference.vb.batches import Batches


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 8, 13, 19, 20])
def test_the_mean_over_a_pass_is_the_total_of_the_data(batch_size):
    """Terms that differ much, so that a wrong weight of the odd group shows."""
    x = torch.arange(1.0, 21.0).double().square()[:, None, None]
    batches = Batches(x, batch_size)
    estimates = [batches.weight * float(batch.sum()) for batch in batches]
    assert sum(estimates) / len(estimates) == pytest.approx(float(x.sum()), rel=1e-14)
    sizes = [len(group) for group in batches.groups]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def test_every_pass_goes_through_every_group():
    batches = Batches(torch.zeros(10, 3, 1), 3)
    for first in (0, 4, 8):
        assert sorted(batches.turn(step) for step in range(first, first + 4)) == [0, 1, 2, 3]
