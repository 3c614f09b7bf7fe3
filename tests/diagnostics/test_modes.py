import numpy as np
import pytest

from ppgen.diagnostics.modes import modes


@pytest.fixture
def random():
    return np.random.default_rng(0)


def test_chains_that_share_ground_are_one_mode(random):
    found = modes({"a": random.normal(size=(64, 50, 3)), "b": random.normal(size=(64, 50)) * 100})
    assert found.counts == [64]
    assert found.words() == "1 mode: 64 chains"


def test_chains_are_counted_by_mode_and_the_sites_that_differ_named(random):
    value = random.normal(size=(64, 100, 2))
    value[::2, :, 1] += 10
    value[0, :, 1] -= 10
    lp = np.where(np.arange(64)[:, None] % 2, -100.0, -120.0) * np.ones((64, 5))
    found = modes({"mu": value, "other": random.normal(size=(64, 100))})
    assert found.words(lp).startswith(
        "2 modes: 33 chains here, 31 there; they differ in mu; mean log density -100.6, -120"
    )
    assert (found.label[1::2] == 0).all()


def test_modes_of_several_sites_are_told_apart_together(random):
    a, b = random.normal(size=(2, 12, 50))
    a[:4] += 20
    b[2:6] += 20
    found = modes({"a": a, "b": b})
    assert found.counts == [6, 2, 2, 2]
    assert "6 chains here, 2 there, 2 elsewhere, 2 elsewhere; they differ in a, b" in found.words()


def test_slow_chains_are_not_modes(random):
    """Chains that wander over the same ground, each at its own pace; fifty sets, none of them cut."""
    for _ in range(50):
        walk = random.normal(size=(16, 400, 3))
        for t in range(1, 400):
            walk[:, t] = 0.95 * walk[:, t - 1] + 0.31 * walk[:, t]
        assert modes({"a": walk}).counts == [16]


def test_chains_that_stand_still_each_in_its_place_are_said_to(random):
    value = np.repeat(random.normal(size=(6, 1)), 30, 1)
    assert modes({"a": value}).words().startswith("no two of 6 chains are in the same place")
