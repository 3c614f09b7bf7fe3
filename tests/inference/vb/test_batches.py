import pytest
import torch

from ppgen.inference.vb.batches import Batches


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 8, 13, 19, 20])
def test_the_mean_over_a_pass_is_the_total_of_the_data(batch_size):
    """Terms that differ much, so that a wrong weight of the odd group shows."""
    x = torch.arange(1.0, 21.0).double().square()[:, None, None]
    batches = Batches(x, None, batch_size, ragged=True)
    estimates = [batches.weight * float(batch.sum()) for batch, _ in batches]
    assert sum(estimates) / len(estimates) == pytest.approx(float(x.sum()), rel=1e-14)
    sizes = [len(group) for group in batches.groups]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def test_every_pass_goes_through_every_group():
    batches = Batches(torch.zeros(10, 3, 1), None, 3, ragged=True)
    for first in (0, 4, 8):
        assert sorted(batches.turn(step) for step in range(first, first + 4)) == [0, 1, 2, 3]


def test_a_feature_that_a_group_never_saw_is_kept():
    """Rows have features where sequences have time."""
    x = torch.randn(10, 4)
    x[:, 3] = torch.nan
    assert {tuple(batch.shape[1:]) for batch, _ in Batches(x, None, 3, ragged=False)} == {(4,)}
    assert {tuple(batch.shape[1:]) for batch, _ in Batches(x[..., None], None, 3, ragged=True)} == {(3, 1)}


@pytest.mark.parametrize("ragged", [True, False])
def test_inputs_follow_their_rows_and_steps(ragged):
    x = torch.arange(12.0).reshape(6, 2, 1).expand(6, 2, 5).clone()
    x[:, 1] = torch.nan
    for u in (x[..., :1], x[:, 0]):
        for batch, inputs in Batches(x, u, 4, ragged=ragged):
            assert len(inputs) == len(batch)
            assert inputs.flatten(1)[:, 0].equal(batch[:, 0, 0])
            assert inputs.ndim == 2 or inputs.shape[1] == batch.shape[1]


def test_rows_that_miss_the_same_are_neighbours():
    """And every row comes once, with its own inputs."""
    torch.manual_seed(0)
    x = torch.randn(400, 11).double()
    x[:, :9] = torch.where(torch.rand(400, 1) < 0.5, x[:, :9], torch.nan)
    x[:, 9:] = torch.where(torch.rand(400, 2) < 0.5, x[:, 9:], torch.nan)
    ((rows, u),) = Batches(x, torch.arange(400.0)[:, None], None, ragged=False)
    assert rows.nan_to_num().equal(x[u[:, 0].long()].nan_to_num())
    assert u[:, 0].unique().equal(torch.arange(400.0))
    assert int((torch.isnan(rows[1:]) != torch.isnan(rows[:-1])).any(1).sum()) == 8 - 1
