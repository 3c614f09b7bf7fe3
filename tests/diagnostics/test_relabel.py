import itertools

import numpy as np
import pytest

from ppgen.diagnostics.relabel import align, label_axes, permuted
from ppgen.errors import DataError

AXES = {"location": (0,), "transition": (0, 1), "initial": (0,)}


@pytest.fixture
def random():
    return np.random.default_rng(0)


def ordered(random, chains=8, draws=200, spread=0.2):
    """Draws of three states in one numbering."""
    location = np.array([0.0, 1.0, 4.0])[:, None] + spread * random.normal(size=(chains, draws, 3, 2))
    transition = random.dirichlet(np.ones(3), size=(chains, draws, 3))
    return {"location": location, "transition": transition, "initial": random.dirichlet(np.ones(3), (chains, draws))}


def renumber(draws, permutation):
    return {site: permuted(value, permutation, AXES[site]) for site, value in draws.items()}


def test_permutations_of_a_matrix_go_along_both_axes():
    matrix = np.arange(9.0).reshape(1, 1, 3, 3)
    assert permuted(matrix, np.array([[[2, 0, 1]]]), (0, 1))[0, 0].tolist() == [[8, 6, 7], [2, 0, 1], [5, 3, 4]]


@pytest.mark.parametrize("kind", ["chains", "draws"])
def test_draws_numbered_at_random_come_back_in_one_numbering(random, kind):
    draws = ordered(random)
    each = np.stack([random.permutation(3) for _ in range(8 * 200)]).reshape(8, 200, 3)
    permutation = np.repeat(each[:, :1], 200, 1) if kind == "chains" else each
    mixed = renumber(draws, permutation)
    found = align(mixed, AXES)
    back = renumber(mixed, found.permutation)
    order = np.argsort(back["location"][0, 0, :, 0])
    back = renumber(back, np.broadcast_to(order, (8, 200, 3)))
    for site, value in draws.items():
        np.testing.assert_array_equal(back[site], value)
    assert found.unclear < 0.01
    assert found.numberings > 1
    assert found.within == (0 if kind == "chains" else pytest.approx(5 / 6, abs=0.05))


def test_draws_in_one_numbering_stay_as_they_are(random):
    found = align(ordered(random), AXES)
    assert found.moved == 0
    assert found.words("state") == "Labels of state never switched."


def test_every_assignment_is_the_best_of_all_permutations(random):
    """Overlapping labels, whose favourites conflict: compared with trying all 24."""
    from ppgen.diagnostics import relabel

    flat, place, scale = random.normal(size=(200, 4, 2)), random.normal(size=(4, 2)), random.gamma(2, size=(4, 2))
    best, margin = relabel._assigned(flat, place, scale)
    cost = relabel._cost(flat, place, scale)
    every = {p: cost[:, list(p), range(4)].sum(-1) for p in itertools.permutations(range(4))}
    least = np.min(list(every.values()), 0)
    np.testing.assert_allclose([every[tuple(p)][i] for i, p in enumerate(best.tolist())], least)
    conflicts = (np.sort(cost.argmin(1), -1) != np.arange(4)).any(-1)
    assert conflicts.sum() > 50
    exchanged = [
        min(
            every[tuple(p[[*range(i), j, *range(i + 1, j), i, *range(j + 1, 4)]])][row]
            for i, j in itertools.combinations(range(4), 2)
        )
        for row, p in enumerate(best)
    ]
    np.testing.assert_allclose(margin, np.array(exchanged) - least, atol=1e-9)


def test_the_numbering_of_most_draws_stays_whatever_the_pivot(random):
    """The highest density is in the one chain that numbers otherwise."""
    draws = ordered(random)
    permutation = np.tile(np.arange(3), (8, 200, 1))
    permutation[5] = [1, 2, 0]
    lp = np.zeros((8, 200))
    lp[5, 7] = 1.0
    found = align(renumber(draws, permutation), AXES, lp)
    assert found.moved == 1 / 8
    back = renumber(renumber(draws, permutation), found.permutation)
    np.testing.assert_array_equal(back["location"], draws["location"])


def test_an_outlier_in_one_number_does_not_change_the_label(random):
    """Two labels far apart in the first number; now and then the first of them is far off in the second number."""
    value = random.normal(size=(4, 250, 2, 2)) * np.array([[0.2, 0.2], [0.2, 5.0]])
    value[..., 1, 0] += 4
    value[..., 0, 1] += 10 * (random.random((4, 250)) < 0.02)
    assert align({"location": value}, {"location": (0,)}).moved == 0


def test_labels_that_mean_the_same_are_said_to_be_unclear(random):
    same = {"location": random.normal(size=(4, 300, 2, 1))}
    assert align(same, {"location": (0,)}).unclear > 0.3
    apart = {"location": same["location"] * 0.1 + np.array([[0.0], [3.0]])}
    assert align(apart, {"location": (0,)}).unclear == 0


def test_axes_of_labels_are_found_by_name():
    dims = {"initial": ("state",), "transition": ("state", "next_state"), "scale": ("feature",), "a": ("x", "state")}
    assert label_axes(dims, "state") == {"initial": (0,), "transition": (0, 1), "a": (1,)}


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"nothing": (0,)}, r"axes must name sites of the fit, \['initial', .* got \['nothing'\]"),
        ({}, "got none"),
        ({"initial": (1,)}, r"initial must have the axes of its labels, \(1,\), got shape \(3,\)"),
        ({"initial": (-1,)}, "initial must have the axes"),
        ({"initial": (0,), "location": (1,)}, "as many labels, got {'initial': 3, 'location': 2}"),
    ],
)
def test_labels_that_are_not_there_are_refused_in_words(random, axes, message):
    with pytest.raises(DataError, match=message):
        align(ordered(random, 2, 5), axes)


def test_draws_that_are_not_finite_are_refused(random):
    draws = ordered(random, 2, 5)
    draws["initial"][0, 0, 0] = np.nan
    with pytest.raises(DataError, match="draws of initial must be finite"):
        align(draws, AXES)
