import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from ppgen.behavior.match import match, normalized_mutual_information
from ppgen.errors import DataError


@pytest.fixture
def labels():
    generator = np.random.default_rng(0)
    return {name: generator.integers(0, 5, n) for name, n in (("a", 300), ("b", 500))}


def test_renaming_syllables_changes_nothing(labels):
    rename = np.array([3, 0, 4, 1, 2])
    found = match(labels, {name: rename[z] for name, z in labels.items()})
    assert found.agreement == 1
    assert found.nmi == pytest.approx(1)
    assert found.syllables["b"].tolist() == rename.tolist()
    assert (found.syllables["agreement"] == 1).all()


def test_the_matching_is_the_best_of_all_matchings(labels):
    from itertools import permutations

    generator = np.random.default_rng(1)
    other = {
        name: np.where(generator.random(len(z)) < 0.5, z, generator.integers(0, 5, len(z)))
        for name, z in labels.items()
    }
    a, b = np.concatenate(list(labels.values())), np.concatenate(list(other.values()))
    best = max((np.array(p)[a] == b).mean() for p in permutations(range(5)))
    assert match(labels, other).agreement == pytest.approx(best)


def test_mutual_information_agrees_with_scikit_learn(labels):
    generator = np.random.default_rng(2)
    a, b = labels["b"], np.where(generator.random(500) < 0.4, labels["b"], generator.integers(0, 9, 500))
    assert normalized_mutual_information(a, b) == pytest.approx(normalized_mutual_info_score(a, b), abs=1e-12)
    assert normalized_mutual_information(np.zeros(4, int), np.zeros(4, int)) == 1


def test_a_syllable_without_a_partner_has_agreement_zero():
    found = match({"a": np.array([0, 0, 1, 1, 2, 2])}, {"a": np.array([0, 0, 0, 0, 1, 1])})
    assert found.syllables["agreement"].tolist() == [0.5, 0.0, 1.0]
    assert found.syllables.loc[1, "b"] == -1
    assert found.agreement == pytest.approx(4 / 6)


def test_only_common_recordings_and_labelled_frames_count(labels):
    other = {"b": np.where(np.arange(500) < 100, -1, labels["b"]), "c": np.zeros(3, int)}
    found = match(labels, other)
    assert found.recordings == ["b"]
    assert found.syllables["frames"].sum() == 400


@pytest.mark.parametrize(
    ("b", "words"),
    [
        ({"x": np.zeros(2, int)}, "match: both fits must share recordings, got a, b and x"),
        ({}, "got a, b and none"),
        ({"a": np.zeros(2, int)}, "recording 'a' must have as many frames in both fits, got 300 and 2"),
        ({"a": np.full(300, -1)}, "some frame must have a label in both fits"),
    ],
)
def test_fits_that_do_not_meet_are_refused_in_words(labels, b, words):
    with pytest.raises(DataError, match=words):
        match(labels, b)
