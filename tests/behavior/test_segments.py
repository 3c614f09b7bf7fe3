import numpy as np
import pytest

from ppgen.behavior.segments import (
    instances,
    median_duration,
    order_by_use,
    summary,
    transition_counts,
    transition_shares,
    usage,
)

LABELS = {"a": np.array([0, 0, 2, 2, 2, 0]), "b": np.array([1, -1, -1, 1, 1])}


def test_instances_are_the_runs_of_each_recording():
    rows = instances(LABELS, fps=10)
    assert rows[["recording", "syllable", "start", "stop"]].to_numpy().tolist() == [
        ["a", 0, 0, 2], ["a", 2, 2, 5], ["a", 0, 5, 6], ["b", 1, 0, 1], ["b", 1, 3, 5],
    ]  # fmt: skip
    np.testing.assert_allclose(rows["duration"], [0.2, 0.3, 0.1, 0.1, 0.2])


def test_a_run_never_crosses_from_one_recording_to_the_next():
    assert len(instances({"a": np.zeros(3, int), "b": np.zeros(2, int)}, fps=1)) == 2


def test_the_median_is_over_all_instances_in_seconds():
    assert median_duration(LABELS, fps=10) == pytest.approx(0.2)


@pytest.mark.parametrize("labels", [{}, {"a": np.empty(0, int)}, {"a": np.full(4, -1)}])
def test_without_labels_there_are_no_instances_and_no_median(labels):
    assert instances(labels, fps=30).empty
    assert np.isnan(median_duration(labels, fps=30))


def test_the_most_used_state_is_number_zero():
    rank = order_by_use({"a": np.array([3, 3, 3, 1, 1, 0])}, states=4)
    assert rank.tolist() == [2, 1, 3, 0]
    renamed = rank[np.array([3, 3, 3, 1, 1, 0])]
    assert (np.diff(np.bincount(renamed, minlength=4)) <= 0).all()


def test_usage_sums_to_one_in_every_recording():
    shares = usage(LABELS, states=3)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert shares.loc["a", 2] == 0.5
    assert usage({"none": np.full(3, -1)}, states=2).isna().all(axis=None)


def test_staying_is_no_transition_and_a_gap_breaks_one():
    assert transition_counts(LABELS["a"], 3).tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert transition_counts(LABELS["b"], 3).sum() == 0


def test_transition_shares_are_rows_of_one_or_nan():
    shares = transition_shares(transition_counts(np.array([0, 1, 0, 2, 0]), 4))
    np.testing.assert_allclose(shares[0], [0, 0.5, 0.5, 0])
    assert np.isnan(shares[3]).all()


def test_the_summary_lists_used_syllables_with_seconds_and_rates():
    table = summary(LABELS, states=5, fps=10)
    assert table.index.tolist() == [0, 1, 2]
    assert table.loc[0, "instances"] == 2
    assert table["usage"].sum() == pytest.approx(1)
    assert table.loc[2, "median_duration"] == pytest.approx(0.3)
    assert table.loc[0, "per_minute"] == pytest.approx(2 / (9 / 10 / 60))
