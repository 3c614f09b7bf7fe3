import numpy as np
import pandas as pd
import pytest
import xarray as xr

from ppgen import plots
from ppgen.errors import DataError
from ppgen.plots import style

STATES, FRAMES, FPS = 12, 900, 30


@pytest.fixture(autouse=True)
def closed():
    """No figure is left open."""
    yield
    from matplotlib import pyplot as plt

    plt.close("all")


@pytest.fixture
def generator():
    return np.random.default_rng(0)


@pytest.fixture
def latents(generator):
    mode = np.repeat(generator.integers(0, STATES, FRAMES // 10), 10)
    z = 0.7 * np.eye(STATES)[mode] + 0.3 / STATES
    return xr.Dataset({"z": (("time", "state"), z), "z_mode": ("time", mode)}, coords={"time": np.arange(FRAMES) / FPS})


@pytest.fixture
def bodies(generator):
    rest = np.array([[0.5, 0.0], [0.3, 0.12], [0.3, -0.12], [-0.5, 0.0]])
    speed = generator.normal(size=(STATES, 1, 1, 2))
    moves = rest + np.linspace(0, 0.5, 13)[None, :, None, None] * speed
    return xr.DataArray(
        moves, dims=("syllable", "time", "keypoint", "space"),
        coords={"syllable": np.arange(STATES), "time": np.linspace(0, 0.4, 13)},
    )  # fmt: skip


@pytest.fixture
def segments(generator):
    return pd.DataFrame(
        {"syllable": generator.integers(0, STATES, 500), "duration": generator.gamma(2, 0.2, 500) + 0.03}
    )


@pytest.fixture
def shares(generator):
    return pd.DataFrame(np.sort(generator.dirichlet(np.ones(STATES), 6))[:, ::-1], index=list("abcdef"))


@pytest.fixture
def transitions(generator):
    matrix = generator.dirichlet(np.full(STATES, 0.3), STATES) * (1 - np.eye(STATES))
    return pd.DataFrame(matrix / matrix.sum(1, keepdims=True))


def every_figure(latents, bodies, segments, shares, transitions, generator):
    history = pd.DataFrame({"step": np.arange(50), "elbo": -1e4 - 1e6 * np.exp(-np.arange(50.0))})
    lost = pd.DataFrame(generator.random((3, 4)), index=list("abc"), columns=["nose", "left", "right", "tail"])
    check = pd.DataFrame([
        {"statistic": s, "draw": d, "value": v}
        for s in ("speed", "spread", "duration") for d in range(-1, 5) for v in generator.gamma(2, 1, 100)
    ])  # fmt: skip
    groups = pd.Series(["x", "x", "x", "y", "y", "y"], index=list("abcdef"))
    tests = pd.DataFrame({"p_adjusted": np.geomspace(1e-4, 1, STATES)})
    trail = pd.DataFrame({"stickiness": [1e4, 1e8, 1e6], "median": [0.1, 0.6, 0.41]})
    overlap = pd.DataFrame(generator.integers(0, 50, (5, 5)) + 300 * np.eye(5, dtype=int))
    return {
        "ethogram": plots.ethogram(latents), "durations": plots.durations(segments, target=0.4),
        "usage": plots.usage(shares), "transition_graph": plots.transition_graph(transitions, shares.mean()),
        "trajectories": plots.trajectories(bodies), "elbo": plots.elbo(history), "missing": plots.missing(lost),
        "predictive_check": plots.predictive_check(check),
        "stickiness_search": plots.stickiness_search(trail, target=0.4),
        "group_usage": plots.group_usage(shares, groups, tests), "agreement": plots.agreement(overlap),
    }  # fmt: skip


def test_every_figure_is_drawn_and_leaves_matplotlib_as_it_was(
    latents, bodies, segments, shares, transitions, generator, tmp_path
):
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    plt.get_fignums()  # pyplot chooses its backend
    before = dict(mpl.rcParams)
    drawn = every_figure(latents, bodies, segments, shares, transitions, generator)
    assert set(drawn) == set(plots.__all__)
    for name, figure in drawn.items():
        figure.get_figure(root=True).savefig(tmp_path / f"{name}.png", dpi=40)
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    assert dict(mpl.rcParams) == before


def test_every_figure_is_one_that_pyplot_shows(latents, bodies, segments, shares, transitions, generator):
    from matplotlib import pyplot as plt

    drawn = every_figure(latents, bodies, segments, shares, transitions, generator)
    shown = [plt.figure(number) for number in plt.get_fignums()]
    assert [figure.get_figure(root=True) for figure in drawn.values()] == shown


def test_figures_made_apart_are_unknown_to_pyplot(shares):
    from matplotlib import pyplot as plt

    with style.apart():
        ax = plots.usage(shares)
    assert ax.patches
    assert plt.get_fignums() == []
    plots.usage(shares)
    assert len(plt.get_fignums()) == 1


def test_a_figure_goes_where_it_is_told(shares):
    ax = plots.style.canvas().subplots()
    assert plots.usage(shares, ax=ax) is ax
    assert len(ax.patches) == STATES


def test_an_ethogram_shows_a_row_per_syllable_in_its_window(latents):
    rows = plots.ethogram(latents, start=2.0, seconds=1.0).get_images()[0].get_array()
    seen = np.unique(latents["z_mode"].sel(time=slice(2, 3)))
    assert len(rows) == len(seen)
    assert rows.shape[1] == 31


def test_an_ethogram_takes_one_of_several_recordings(latents):
    both = xr.concat([latents, latents.assign(z=latents["z"] * 0)], dim="sequence").assign_coords(sequence=["a", "b"])
    assert float(plots.ethogram(both, sequence="b").get_images()[0].get_array().max()) == 0
    assert float(plots.ethogram(both).get_images()[0].get_array().max()) > 0.5


def test_an_empty_window_is_refused_in_words(latents):
    with pytest.raises(DataError, match="ethogram: nothing lies between 100 and 110 s"):
        plots.ethogram(latents, start=100.0, seconds=10.0)
    with pytest.raises(DataError, match="has a syllable"):
        plots.ethogram(latents.assign(z_mode=latents["z_mode"] * 0 - 1))


@pytest.mark.parametrize("keypoints", [1, 2, 3, 9])
def test_bodies_of_few_and_many_keypoints_are_drawn(keypoints, generator):
    bodies = xr.DataArray(generator.normal(size=(2, 5, keypoints, 3)), dims=("syllable", "time", "keypoint", "space"),
                          coords={"syllable": [0, 1], "time": np.arange(5) / FPS})  # fmt: skip
    bodies[0, :, 0] = np.nan
    if keypoints > 1:
        assert len(plots.trajectories(bodies).axes) == 2
    else:
        assert plots.trajectories(bodies[1:]).axes


def test_bodies_on_a_line_and_bodies_never_seen(bodies):
    assert plots.trajectories(bodies * [1, 0]).axes
    with pytest.raises(DataError, match="at least one seen keypoint"):
        plots.trajectories(bodies * np.nan)


def test_one_syllable_alone_is_drawn():
    alone = pd.DataFrame([[np.nan]])
    assert plots.transition_graph(alone, pd.Series([1.0]))
    assert plots.usage(pd.DataFrame([[1.0]], index=["a"]))
    assert plots.durations(pd.DataFrame({"syllable": [0], "duration": [0.5]}))


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: plots.durations(pd.DataFrame({"syllable": [], "duration": []})), "durations: segments must hold"),
        (lambda: plots.elbo(pd.DataFrame({"step": [0], "elbo": [np.nan]})), "elbo: history must hold"),
        (
            lambda: plots.predictive_check(pd.DataFrame({"statistic": [], "draw": [], "value": []})),
            "at least one statistic",
        ),
    ],
)
def test_nothing_to_draw_is_refused_in_words(draw, words):
    with pytest.raises(DataError, match=words):
        draw()


def test_importing_plots_loads_no_drawing_library():
    import subprocess
    import sys

    code = "import sys, ppgen.plots; print(any(m in sys.modules for m in ('matplotlib', 'seaborn')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_trials_at_almost_one_stickiness_can_be_drawn():
    trail = pd.DataFrame({"stickiness": [100.0, np.nextafter(100.0, 101.0)], "median": [0.4, 0.42]})
    low, high = plots.stickiness_search(trail, target=0.4).get_xlim()
    assert low < 100 < high


def test_what_a_predictive_check_cuts_off_is_written_into_it():
    generator = np.random.default_rng(0)
    values = np.r_[generator.gamma(2, 1, 100), generator.gamma(2, 1, 60), np.full(40, 1e46)]
    rows = pd.DataFrame({"statistic": "speed", "draw": np.repeat([-1, 0], 100), "value": values})
    (words,) = plots.predictive_check(rows).axes[0].texts
    assert words.get_text() == "40% of simulated\nvalues lie beyond"
    assert not plots.predictive_check(rows[rows["value"] < 3]).axes[0].texts
