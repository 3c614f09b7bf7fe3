import numpy as np
import pytest
from scipy import stats

from ppgen.behavior.compare import _permute, _spread, compare, dunn
from ppgen.behavior.partitions import SHUFFLES, assignments, permutation_p, ways
from ppgen.behavior.study_report import comparison_sections
from ppgen.errors import DataError

FPS = 30


def chain(transition, frames, generator):
    z = np.zeros(frames, int)
    for t in range(1, frames):
        z[t] = generator.choice(len(transition), p=transition[z[t - 1]])
    return z


def transition(loves=None):
    """Four syllables; after syllable 0 the one in ``loves`` is far likelier than the others."""
    matrix = np.full((4, 4), 0.05) + 0.8 * np.eye(4)
    if loves is not None:
        matrix[0] = [0.5, 0.05, 0.05, 0.05]
        matrix[0, loves] += 0.35
    return matrix


def two_groups(loves_a, loves_b, each=6, frames=800, seed=0):
    generator = np.random.default_rng(seed)
    labels = {f"a{i}": chain(transition(loves_a), frames, generator) for i in range(each)}
    labels |= {f"b{i}": chain(transition(loves_b), frames, generator) for i in range(each)}
    return labels, {name: name[0] for name in labels}


def test_dunn_for_two_groups_without_ties_is_the_square_root_of_kruskal_wallis():
    generator = np.random.default_rng(0)
    values, groups = generator.normal(size=30), np.array(["a", "b"])[generator.integers(0, 2, 30)]
    statistic, p = stats.kruskal(values[groups == "a"], values[groups == "b"])
    row = dunn(values, groups).iloc[0]
    assert row["z"] ** 2 == pytest.approx(statistic)
    assert row["p"] == pytest.approx(p)


def test_dunn_with_ties_keeps_that_identity():
    """The tie correction of Dunn (1964) is the one of Kruskal and Wallis; without it z is too small here."""
    generator = np.random.default_rng(1)
    values, groups = generator.integers(0, 4, 40).astype(float), np.repeat(["a", "b"], 20)
    assert dunn(values, groups).iloc[0]["z"] ** 2 == pytest.approx(stats.kruskal(values[:20], values[20:])[0])


def test_dunn_agrees_with_a_worked_example():
    """Ranks 1..9 in three groups of three: mean ranks 2, 5, 8; variance N(N+1)/12 (2/3) = 5; z = -3/√5, -6/√5."""
    found = dunn(np.arange(9.0), np.repeat(["a", "b", "c"], 3))
    np.testing.assert_allclose(found["z"], [-3 / 5**0.5, -6 / 5**0.5, -3 / 5**0.5])
    assert found[["a", "b"]].to_numpy().tolist() == [["a", "b"], ["a", "c"], ["b", "c"]]


def test_dunn_of_equal_or_absent_values_is_not_a_number():
    assert np.isnan(dunn(np.ones(6), np.repeat(["a", "b"], 3))["p"]).all()
    assert np.isnan(dunn(np.array([1.0, 2, np.nan, np.nan]), np.repeat(["a", "b"], 2))["p"]).all()


def test_a_changed_transition_is_found_and_named():
    labels, groups = two_groups(1, 2)
    top = compare(labels, groups, FPS).transitions.head(2)
    assert set(map(tuple, top[["from", "to"]].to_numpy())) == {(0, 1), (0, 2)}
    assert (top["p_adjusted"] < 0.05).all()
    assert top.set_index("to").loc[1, "difference"] > 0.3


def test_groups_that_do_not_differ_are_rarely_told_apart():
    """No effect anywhere: with false discoveries held at 5 %, any finding at all is a false alarm.

    40 comparisons, each raising one with probability at most .05; more than 7 has probability below 1e-3.
    """
    alarms = 0
    for seed in range(40):
        labels, groups = two_groups(None, None, each=5, frames=120, seed=seed)
        found = compare(labels, groups, FPS, permutations=200)
        alarms += bool((found.transitions["p_adjusted"] < 0.05).any())
    assert alarms <= 7


def test_a_permutation_p_value_is_the_share_of_splits_as_far_apart():
    """Two of the six splits of 1, 1, 0, 0 are as far apart as the given one; four standard errors around 1/3."""
    shares, one = np.array([[1.0], [1.0], [0.0], [0.0]]), np.array([True, True, False, False])
    difference, p = _permute(shares, one, 2000, 0)
    assert difference[0] == 1
    assert abs(p[0] - 1 / 3) < 4 * (2 / 9 / 2000) ** 0.5


def test_a_permutation_p_value_is_never_zero_and_absent_where_a_group_says_nothing():
    generator = np.random.default_rng(0)
    far = np.r_[generator.normal(0, 0.01, 10), generator.normal(9, 0.01, 10)]
    shares, one = np.column_stack([far, np.where(np.arange(20) < 10, np.nan, 1.0)]), np.arange(20) < 10
    _, p = _permute(shares, one, 99, 1)
    assert p[0] == pytest.approx(0.01)
    assert np.isnan(p[1])


def test_a_changed_usage_is_found_by_both_tests():
    labels, groups = two_groups(None, None)
    labels |= {name: np.where((z == 3) & (name[0] == "b"), 1, z) for name, z in labels.items()}
    found = compare(labels, groups, FPS)
    assert found.usage_tests.loc[3, "p_adjusted"] < 0.05
    assert found.usage_tests.loc[3, "mean_b"] == 0
    pairs = found.pairs.query("measure == 'usage' and syllable == 3")
    assert pairs["p_adjusted"].item() < 0.05
    assert pairs["z"].item() > 0


def test_a_changed_duration_is_in_seconds_and_found():
    generator = np.random.default_rng(3)
    slow, quick = 0.9 * np.eye(2) + 0.05, 0.5 * np.eye(2) + 0.25
    labels = {f"a{i}": chain(slow, 1500, generator) for i in range(5)} | {
        f"b{i}": chain(quick, 1500, generator) for i in range(5)
    }
    found = compare(labels, {name: name[0] for name in labels}, fps=10)
    assert found.duration_tests["p_adjusted"].max() < 0.05
    assert (found.duration.loc["a0"] > found.duration.loc["b0"]).all()
    assert found.duration.loc["b0"].max() <= 0.3


def test_three_groups_give_three_pairs():
    labels, _ = two_groups(1, 2, frames=200)
    groups = {name: "abc"[i % 3] for i, name in enumerate(labels)}
    found = compare(labels, groups, FPS, permutations=50)
    assert set(map(tuple, found.pairs[["a", "b"]].to_numpy())) == {("a", "b"), ("a", "c"), ("b", "c")}


def test_the_same_seed_gives_the_same_table():
    labels, groups = two_groups(1, 2, frames=150)
    one, two = (compare(labels, groups, FPS, permutations=100).transitions for _ in range(2))
    assert one.equals(two)


def test_a_rare_syllable_is_not_tested():
    labels, groups = two_groups(None, None, frames=400)
    labels["a0"] = np.r_[labels["a0"], 7]
    assert 7 not in compare(labels, groups, FPS, permutations=10).usage_tests.index


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({"a": "x", "b": "x"}, "two groups or more, of two recordings or more each, got x: 2"),
        ({"a": "x", "b": "y"}, "got x: 1, y: 1"),
        ({"a": "x"}, "every recording must have a group, got none for b"),
    ],
)
def test_groups_that_cannot_be_compared_are_refused_in_words(groups, words):
    with pytest.raises(DataError, match=words):
        compare({"a": np.zeros(5, int), "b": np.ones(5, int)}, groups, FPS)


@pytest.mark.parametrize(("each", "smallest"), [(2, 1 / 3), (3, 0.1), (4, 2 / 70), (5, 2 / 252)])
def test_complete_separation_of_few_recordings_has_the_p_value_of_its_ways(each, smallest):
    """The chi-squared distribution says .0495 for three against three, where one way in ten is as extreme."""
    values, groups = np.arange(2.0 * each), np.repeat(["a", "b"], each)
    assert dunn(values, groups)["p"].item() == pytest.approx(smallest)
    labels = {f"{g}{i}": np.repeat([0, 1], [10 * i + 200 * (g == "b") + 1, 400]) for g in "ab" for i in range(each)}
    found = compare(labels, {name: name[0] for name in labels}, FPS, permutations=2000)
    np.testing.assert_allclose(found.usage_tests["p"], smallest)
    np.testing.assert_allclose(found.usage_tests["p_smallest"], smallest)
    assert found.smallest["transitions"] == pytest.approx(smallest)


def test_p_values_of_small_groups_are_those_of_scipy_over_every_permutation():
    generator = np.random.default_rng(4)
    samples = [generator.integers(0, 6, n).astype(float) for n in (3, 2, 4)]

    def statistic(*parts):
        return stats.kruskal(*parts).statistic

    wanted = stats.permutation_test(samples, statistic, n_resamples=np.inf, alternative="greater").pvalue
    ranks = stats.rankdata(np.concatenate(samples))
    p, _ = permutation_p(np.split(ranks, [3, 5]), _spread)
    assert p == pytest.approx(wanted)


def test_under_no_difference_small_p_values_are_no_commoner_than_they_say():
    """Exact tests: at most 5 % below .05. 600 data sets of three and four against four; more than 48 is 5e-4 likely."""
    generator = np.random.default_rng(5)
    alarms = sum(dunn(generator.normal(size=7), np.repeat(["a", "b"], [3, 4]))["p"].item() <= 0.05 for _ in range(600))
    assert alarms <= 48


def test_many_ways_are_drawn_at_random_and_the_same_each_time():
    one, two = assignments((8, 8, 8), 3), assignments((8, 8, 8), 3)
    assert len(one) == SHUFFLES + 1
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one[0], np.repeat([0, 1, 2], 8))
    assert (np.sort(one, axis=1) == one[0]).all()


def test_every_way_is_there_once_and_the_given_one_is_first():
    dealt = assignments((2, 1, 2))
    assert len(dealt) == ways((2, 1, 2)) == len(np.unique(dealt, axis=0)) == 30
    np.testing.assert_array_equal(dealt[0], [0, 0, 1, 2, 2])


def test_a_report_says_what_so_few_recordings_cannot_show():
    labels, groups = two_groups(None, None, each=3, frames=200)
    words = " ".join(comparison_sections(compare(labels, groups, FPS)).pop(0).words)
    assert words.count("the smallest p possible is 0.1 before adjustment, so no difference could have been found") == 3
    labels, groups = two_groups(None, None, each=5, frames=200)
    words = " ".join(comparison_sections(compare(labels, groups, FPS)).pop(0).words)
    assert "among 12 tests no fewer than 2 differences at once could have been found" in words
