import torch

from ppgen.inference.calibration.quantities import _unlabelled


def test_entries_are_sorted_along_the_labels_that_the_model_calls_exchangeable_and_no_others():
    value = torch.randn(2, 3, 4, 5)
    assert _unlabelled(value, ("cluster", "feature"), ("cluster",)).equal(value.sort(2).values)
    assert _unlabelled(value, ("state", "feature"), ()).equal(value)
    assert _unlabelled(value, ("state", "feature"), ("cluster",)).equal(value)


def test_what_is_ranked_is_the_same_under_every_numbering():
    order, other = torch.randperm(4), torch.randperm(5)
    square, oblong = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 5)
    dims, labels = ("cluster", "next_cluster"), ("cluster", "topic")
    moved = square[:, :, order][..., order]
    assert _unlabelled(square, dims, labels).equal(_unlabelled(moved, dims, labels))
    dims = ("cluster", "topic")
    moved = oblong[:, :, order][..., other]
    assert _unlabelled(oblong, dims, labels).equal(_unlabelled(moved, dims, labels))
