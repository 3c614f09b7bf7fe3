"""Calibration: what is right passes, what is wrong is seen, and nothing is lost on the way."""

import functools
import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

from ppgen.emissions.autoregressive import Autoregressive
from ppgen.emissions.gaussian import Gaussian
from ppgen.errors import DataError, FitError
from ppgen.inference.calibration import calibrate
from ppgen.inference.calibration.quantities import log_likelihoods
from ppgen.inference.calibration.simulation import joint
from ppgen.model import Model
from ppgen.models.hmm import HMM
from ppgen.predictions import predictive
from ppgen.programs.program import Function
from ppgen.results.fit import Fit
from ppgen.results.posterior import Draws

ROWS, WEIGHTS = 20, 3
INPUTS = torch.linalg.qr(torch.randn(ROWS, WEIGHTS, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
INPUTS = 3 * INPUTS  # orthogonal columns: the exact posterior is one of independent normals
ALL, TENTH = slice(None), torch.arange(ROWS) % 10 != 3
PRECISION = 1.0 + 9.0  # of every weight
EVERYTHING = 1000


def regression(inputs, y):
    weights = pyro.sample("weights", dist.Normal(torch.zeros(WEIGHTS), 1.0).to_event(1))
    with pyro.plate("row", len(inputs)):
        pyro.sample("y", dist.Normal(inputs @ weights, 1.0), obs=y)


def exact(data, seed, *, used=ALL, narrow=1.0, draws=100):
    """Draws of the posterior of every data set at once, made wrong on request."""
    inputs, y = INPUTS[used], data["y"][:, used]
    precision = torch.eye(WEIGHTS, dtype=torch.float64) + inputs.T @ inputs
    mean = torch.linalg.solve(precision, inputs.T @ y.T).T
    noise = torch.randn(len(y), draws, WEIGHTS, dtype=torch.float64)
    root = torch.linalg.inv(torch.linalg.cholesky(precision))
    return {"weights": mean[:, None] + narrow * noise @ root}


def prior(data, seed):
    return {"weights": torch.randn(len(data["y"]), 100, WEIGHTS, dtype=torch.float64)}


def one_by_one(data, seed):
    return {name: value[0] for name, value in exact({"y": data["y"][None]}, seed).items()}


def at_once(quantity):
    return of_regression(exact, batched=True, quantities={"q": quantity})


def of_regression(engine="mcmc", replications=12, **options):
    return calibrate(
        regression, INPUTS, torch.zeros(ROWS), engine=engine, replications=replications, random_seed=3, **options
    )


@functools.cache
def whole(engine):
    return of_regression(engine, EVERYTHING, batched=True)


def failures(calibration):
    table = calibration.report.table
    return table["check"][~table["ok"].astype(bool)].tolist()


def wrong(calibration):
    return [name for name in failures(calibration) if name.split(" ")[0] in ("centre", "width")]


def hidden_markov(states=2):
    return HMM(states, emission=Gaussian(1, covariance="diagonal"), stickiness=5.0)


def sequence(steps=8):
    x = torch.zeros(1, steps, 1, dtype=torch.float64)
    x[0, 2:4] = math.nan
    return x


def test_an_exact_posterior_is_called_calibrated():
    found = whole(exact)
    assert found.ok, str(found)
    assert "Calibrated, as far as 1000 replications can tell" in str(found)
    assert {name: value.shape for name, value in found.pit.items()} == {"weights": (1000, 3), "log_likelihood": (1000,)}


def test_the_prior_is_seen_by_the_log_likelihood_alone():
    assert wrong(whole(prior)) == ["centre of log_likelihood", "width of log_likelihood"]


def test_one_observation_in_ten_ignored_is_seen():
    found = of_regression(functools.partial(exact, used=TENTH), EVERYTHING, batched=True)
    assert "centre of log_likelihood" in wrong(found)


def test_an_sd_ten_percent_too_small_is_seen():
    found = of_regression(functools.partial(exact, narrow=0.9), EVERYTHING, batched=True)
    assert "width of weights" in wrong(found)
    assert "too narrow" in str(found)


def test_few_replications_are_not_called_enough():
    found = of_regression(exact, 60, batched=True)
    assert failures(found) == ["power"]
    assert not found.ok


def test_replications_are_sampled_in_one_batch():
    found = of_regression(replications=30)
    assert found.attrs["way"] == "one batch by mcmc"
    assert found.attrs["independent_draws"] > 40
    assert not wrong(found)


def test_a_guide_of_independent_normals_is_fitted_to_all_replications_at_once():
    found = of_regression("svi", options={"max_steps": 60, "lr": 0.1}, draws=30)
    assert found.attrs["way"] == "one batch by svi"
    assert np.isfinite(found.pit["weights"]).all()


def test_the_same_seed_gives_the_same_ranks_and_leaves_the_global_stream_alone():
    before = torch.get_rng_state()
    one, two = of_regression(replications=4), of_regression(replications=4)
    assert torch.get_rng_state().equal(before)
    assert all(np.array_equal(one.pit[name], two.pit[name]) for name in one.pit)


def test_more_replications_begin_with_the_same_data():
    few, many = of_regression(one_by_one, 5), of_regression(one_by_one, 9)
    np.testing.assert_array_equal(few.pit["weights"] > 0.5, many.pit["weights"][:5] > 0.5)


def test_an_engine_does_not_draw_from_the_stream_that_made_its_data():
    """The first normals of that stream are the true weights: an engine that got them would look perfect."""
    prepared, seen = joint(regression, (INPUTS, torch.zeros(ROWS))), []

    def engine(data, seed):
        seen.append(torch.equal(prepared.simulate(seed).data["y"], data["y"]))
        return one_by_one(data, seed)

    of_regression(engine, 3)
    assert seen == [False] * 3


def test_the_ranked_log_likelihood_is_that_of_the_data():
    prepared = joint(hidden_markov(), (sequence(),))
    drawn = [prepared.simulate(seed) for seed in range(6)]
    theta = {name: torch.stack([one.theta[name] for one in drawn]).unflatten(0, (2, 3)) for name in drawn[0].theta}
    data = torch.stack([drawn[0].data, drawn[3].data])
    found = log_likelihoods(prepared, data, theta)
    for r in range(2):
        for m in range(3):
            one = {name: value[r, m] for name, value in theta.items()}
            wanted = predictive.log_likelihood(hidden_markov(), one, data[r]).sum()
            assert found[r, m] == pytest.approx(float(wanted), abs=1e-10)


def test_the_tree_is_drawn_and_saved(tmp_path):
    import arviz_plots
    import matplotlib as mpl
    from matplotlib import pyplot

    mpl.use("agg")
    found = of_regression(exact, 60, batched=True)
    tree = found.to_arviz()
    assert dict(tree["prior_sbc"].sizes) == {"chain": 1, "draw": 60, "weights_dim_0": 3}
    for variable in tree["prior_sbc"].data_vars.values():
        assert 0 < float(variable.min()) < float(variable.max()) < 1
    assert arviz_plots.plot_ecdf_pit(tree, stats={"ecdf_pit": {"n_simulations": 50}}, backend="matplotlib") is not None
    pyplot.close("all")
    found.save(tmp_path / "calibration.nc")
    with xr.open_datatree(tmp_path / "calibration.nc", engine="h5netcdf") as again:
        assert again["prior_sbc"].to_dataset().equals(tree["prior_sbc"].to_dataset())
        assert again["prior_sbc"].attrs["random_seed"] == 3


def test_failed_replications_are_counted_named_and_never_dropped():
    calls = []

    def engine(data, seed):
        calls.append(seed)
        if len(calls) in (2, 5):
            raise ZeroDivisionError("no luck")
        if len(calls) == 7:
            return {"weights": torch.full((100, 3), math.nan)}
        return one_by_one(data, seed)

    found = of_regression(engine, 8)
    assert found.failures["replication"].tolist() == [1, 4, 6]
    assert found.failures["seed"].tolist() == [calls[1], calls[4], calls[6]]
    assert "failed replications" in failures(found)
    assert f"replication 1 (seed {calls[1]}): ZeroDivisionError: no luck" in str(found)
    assert np.isnan(found.pit["weights"]).all(1).sum() == 3
    assert len(found.to_arviz()["prior_sbc"]["draw"]) == 5


def test_an_engine_that_always_fails_is_an_error():
    def engine(data, seed):
        raise ZeroDivisionError("no luck")

    with pytest.raises(FitError, match="all failed.*ZeroDivisionError: no luck"):
        of_regression(engine, 3)


def test_relabelled_states_have_the_same_ranks():
    """Labels of states are swapped in half of the draws: no rank may move."""
    x = sequence()
    prepared = joint(hidden_markov(), (x,))
    pool = [prepared.simulate(seed).theta for seed in range(40)]
    sites = {name: torch.stack([theta[name] for theta in pool]) for name in prepared.density.sites}
    swapped = {name: value.clone() for name, value in sites.items()}
    for name, value in swapped.items():
        value[::2] = value[::2].flip(1, 2) if name == "transition" else value[::2].flip(1)
    plain, other = (
        calibrate(hidden_markov(), x, engine=lambda data, seed, s=s: s, replications=5, random_seed=0, imputations=0)
        for s in (sites, swapped)
    )
    assert set(plain.pit) == {"initial", "transition", "precision", "location", "log_likelihood"}
    for name, value in plain.pit.items():
        np.testing.assert_array_equal(value, other.pit[name])


def test_hidden_entries_are_imputed_and_ranked():
    """The hidden entries of prior draws against those of other prior draws: nothing is learnt, all is calibrated."""
    x = torch.full((1, 3, 1), math.nan, dtype=torch.float64)
    x[0, 2] = 0.0

    prepared = joint(hidden_markov(1), (x,))
    pool = prepared.density.prior(300)

    def engine(data, seed):
        assert torch.isnan(data).equal(torch.isnan(x))
        chosen = torch.randperm(300)[:30]
        return {name: value[chosen] for name, value in pool.items()}

    found = calibrate(hidden_markov(1), x, engine=engine, replications=40, random_seed=1, imputations=10)
    assert not len(found.failures)
    assert found.pit["imputed"].shape == (40, 3)  # their mean, and both
    assert not [name for name in wrong(found) if "imputed" in name]
    without = calibrate(hidden_markov(1), x, engine=engine, replications=2, random_seed=1, imputations=0)
    assert "imputed" not in without.pit


def test_chosen_quantities_may_use_the_data_draw_and_tie():
    def prediction(theta, data):
        return dist.Normal(INPUTS[0] @ theta["weights"], 1.0).sample()

    quantities = {
        "fit": lambda theta, data: (data["y"] - INPUTS @ theta["weights"]).square().sum(),
        "prediction": prediction,
        "positive": lambda theta, data: theta["weights"] > 0,
        "slow": lambda theta, data: float(theta["weights"][0]) + 0 * data["y"].numpy()[0],
    }
    found = of_regression(exact, 400, batched=True, quantities=quantities, sites=[])
    assert set(found.pit) == {*quantities, "log_likelihood"}
    assert found.pit["positive"].shape == (400, 3)
    assert not wrong(found)
    np.testing.assert_allclose(np.floor(101 * found.pit["fit"]), 100 - np.floor(101 * found.pit["log_likelihood"]))


def test_entries_that_cannot_vary_are_left_out():
    found = calibrate(
        HMM(1, features=2),
        torch.zeros(1, 5, 2, dtype=torch.float64),
        engine="vb",
        replications=6,
        random_seed=0,
        draws=30,
    )
    assert "initial" not in found.pit
    assert found.pit["precision_cholesky"].shape == (6, 3)  # the zero above the diagonal is not ranked
    assert found.attrs["way"] == "one by one (there is no batch of such fits)"


def test_chains_are_thinned_to_as_many_draws_as_are_independent():
    def walk(data, seed):
        """The exact posterior, visited slowly: a correlation of .9 between one draw and the next."""
        steps = exact({"y": data["y"][None]}, seed, draws=160)["weights"][0]
        mean, steps = steps.mean(0), steps - steps.mean(0)
        for index in range(1, len(steps)):
            steps[index] = 0.9 * steps[index - 1] + 0.19**0.5 * steps[index]
        draws = Draws({"weights": (mean + steps).reshape(2, 80, 3)})
        return Fit(Function(regression, (INPUTS, data["y"])), draws, pd.DataFrame(), {}, {})

    slow = of_regression(walk, 6, draws=160)
    assert 2 <= slow.attrs["independent_draws"] < 40
    assert of_regression(one_by_one, 6).attrs["independent_draws"] == 100


def test_one_program_at_a_time_is_sampled_where_that_is_asked_for():
    options = {"draws": 20, "tune": 30, "chains": 2}
    found = of_regression("mcmc", 2, draws=40, batched=False, options=options)
    assert found.attrs["way"] == "one by one"
    assert not len(found.failures)


def test_inputs_reach_every_fit():
    class Line(Model):
        data_dims = ("row", "feature")
        dims = {"slope": ()}

        def model(self, x, *, u=None, total=None):
            slope = pyro.sample("slope", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.plate("row", total or len(x), subsample_size=len(x)):
                pyro.sample("x", dist.Normal(slope * u, 1.0).to_event(1), obs=x)

    seen = []

    def engine(data, seed):
        seen.append(data.clone())
        return {"slope": torch.randn(50, dtype=torch.float64)}

    u = 1e3 * torch.ones(4, 1, dtype=torch.float64)
    found = calibrate(Line(), torch.zeros(4, 1), u=u, engine=engine, replications=5, random_seed=0)
    assert min(float(x.abs().max()) for x in seen) > 5
    assert "log_likelihood" in found.pit


def flat(y):
    mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
    pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def masked(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0).mask(False))
    pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def scored(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.factor("extra", -mu)
    pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def changing(y):
    n = int(torch.randint(1, 3, ()))
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu, 1.0).expand([n]).to_event(1), obs=y)


Y = torch.zeros(())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: of_regression(replications=0), "replications must be at least 1, got 0"),
        (lambda: of_regression(draws=0), "draws must be at least 1"),
        (lambda: of_regression("gibbs"), "engine must be one of .*'gibbs'"),
        (lambda: of_regression(level=0.0), "level must be between 0 and 1"),
        (lambda: of_regression(sites=["slope"]), r"sites must be among \['weights'\], got \['slope'\]"),
        (lambda: of_regression(options={"walkers": 3}), "options of a batch by mcmc are .*walkers"),
        (lambda: of_regression(exact, batched=True, quantities={"imputed": abs}), "names other than"),
        (lambda: at_once(lambda theta, data: "a"), "quantity 'q' must take"),
        (lambda: at_once(lambda theta: 0), "quantity 'q' must take"),
        (
            lambda: at_once(lambda theta, data: np.zeros(1 + int(theta["weights"][0] > 0))),
            "one shape",
        ),
        (lambda: of_regression(lambda data, seed: {}, batched=True), "must return .* for 'weights'"),
        (lambda: of_regression("vb"), "vb needs a conjugate model, got function"),
        (lambda: of_regression("vb", batched=True), "cannot be fitted as one batch"),
        (lambda: of_regression(n_jobs=0), "n_jobs must be a number of processes"),
        (lambda: of_regression(u=Y), "u is for models"),
        (lambda: calibrate(hidden_markov(), replications=2), "takes template data x and nothing else, got 0"),
        (lambda: calibrate(hidden_markov(), torch.zeros(2, 3, 4), replications=2), "must have shape"),
        (lambda: calibrate(regression, INPUTS, None, replications=2), "must observe data"),
        (lambda: calibrate(flat, Y, replications=2), "prior .*drawn from"),
        (lambda: calibrate(masked, Y, replications=2), "prior .*'mu' is flat"),
        (lambda: calibrate(scored, Y, replications=2), "got the factor 'extra'"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_words(call, message):
    with pytest.raises((DataError, FitError), match=message):
        call()


class Looks(Model):
    """A model that looks at its data, which no map over data sets can follow."""

    data_dims = ("row", "feature")
    dims = {"mu": ()}

    def model(self, x, *, u=None, total=None):
        mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), 1.0))
        scale = 1.0 if float(x.nansum()) > 0 else 2.0
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            pyro.sample("x", dist.Normal(mu, scale).expand(x.shape).to_event(1), obs=x)


def test_a_program_that_cannot_be_mapped_is_fitted_one_by_one_and_that_is_said(caplog):
    quick = {"draws": 10, "tune": 20, "chains": 2}
    found = calibrate(Looks(), torch.zeros(3, 1), replications=2, draws=10, random_seed=0, options=quick)
    assert found.attrs["way"].startswith("one by one (FitError")
    assert "fits one by one, for one batch is not possible" in caplog.text
    with pytest.raises(DataError, match="cannot be fitted as one batch"):
        calibrate(Looks(), torch.zeros(3, 1), replications=2, batched=True)
    with pytest.raises(DataError, match="cannot be fitted as one batch"):
        of_regression("svi", batched=True, options={"guide": "full_rank"})


@pytest.mark.slow
def test_processes_give_the_results_of_one():
    one = calibrate(hidden_markov(1), sequence(), engine="vb", replications=6, random_seed=0, n_jobs=1)
    two = calibrate(hidden_markov(1), sequence(), engine="vb", replications=6, random_seed=0, n_jobs=2)
    assert all(np.array_equal(one.pit[name], two.pit[name]) for name in one.pit)


@pytest.mark.slow
def test_mcmc_is_calibrated_on_a_regression():
    found = of_regression(replications=EVERYTHING)
    assert found.ok, str(found)


@pytest.mark.slow
def test_svi_is_calibrated_on_a_regression_with_orthogonal_inputs():
    """Of data drawn at seed 3 the exact posterior too has .007. Two alarms of four: 6e-6 by chance."""
    inputs = INPUTS, torch.zeros(ROWS)
    found = [
        calibrate(regression, *inputs, engine="svi", replications=EVERYTHING, random_seed=seed) for seed in range(4)
    ]
    assert sum(not one.ok for one in found) <= 1, "\n".join(map(str, found))


@pytest.mark.slow
def test_vb_is_calibrated_where_it_is_exact():
    """One state: an autoregression, which is a Bayesian regression on the step before, with unknown noise."""
    x = torch.zeros(1, 12, 1, dtype=torch.float64)
    model = HMM(1, emission=Autoregressive(1, lags=1))
    found = calibrate(model, x, engine="vb", replications=EVERYTHING, random_seed=0)
    assert found.ok, str(found)


@pytest.mark.slow
def test_mcmc_is_calibrated_on_a_hidden_markov_model_with_gaps():
    found = calibrate(
        hidden_markov(), sequence(50), engine="mcmc", replications=EVERYTHING, random_seed=1, batched=True
    )
    assert found.ok, str(found)


@pytest.mark.slow
def test_mean_field_is_not_calibrated_on_a_hidden_markov_model_and_said_to_be_too_narrow():
    found = calibrate(hidden_markov(), sequence(50), engine="vb", replications=EVERYTHING, random_seed=1)
    assert "width of location" in wrong(found)
    assert "too narrow" in str(found)


@pytest.mark.slow
def test_false_alarms_of_whole_calibrations_are_as_rare_as_the_level_says():
    """200 calibrations of the exact posterior at level .05: more than 23 alarms happen once in 1e4 times."""
    alarms = 0
    for seed in range(200):
        found = calibrate(
            regression,
            INPUTS,
            torch.zeros(ROWS),
            engine=exact,
            batched=True,
            replications=100,
            random_seed=seed,
            level=0.05,
        )
        alarms += bool(wrong(found))
    assert alarms <= 23
