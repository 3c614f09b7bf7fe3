import itertools
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from dense import log_normal, normal

from ppgen.emissions import Autoregressive, Bernoulli, Gaussian, Poisson
from ppgen.errors import DataError, FileError, FitError
from ppgen.families import MatrixNormalInverseWishart, NormalInverseWishart
from ppgen.inference import svi, vb
from ppgen.inference.vb import engine
from ppgen.models import HMM
from ppgen.storage.folder import read_tensors, write_tensors
from ppgen.storage.lock import LOCK, held


def blobs(N=3, T=60, D=2, gap=4.0):
    """Sequences that stay in one of three places for a while."""
    centres = gap * torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])[:, :D].double()
    z = torch.randint(3, (N, T // 10 + 1)).repeat_interleave(10, -1)[:, :T]
    return centres[z] + normal(N, T, D)


def holes(x, share=0.2):
    x = x.clone()
    x[torch.rand(x.shape) < share] = torch.nan
    x[0, -5:] = torch.nan
    return x


def run(model, x, **options):
    return vb.fit(model, x, **({"random_seed": 1, "progressbar": False} | options))


def eta(fit):
    return [value for factor in fit.posterior.factors.values() for value in factor.eta.values()]


def same(a, b):
    return (
        all(left.equal(right) for left, right in zip(eta(a), eta(b), strict=True))
        and a.history.equals(b.history)
        and all(left.equal(right) for left, right in zip(a.model.parameters(), b.model.parameters(), strict=True))
    )


MODELS = {
    "gaussian": lambda: HMM(states=3, features=2),
    "diagonal": lambda: HMM(states=3, emission=Gaussian(2, covariance="diagonal")),
    "autoregressive": lambda: HMM(states=3, emission=Autoregressive(2, 2), stickiness=10.0),
    "hierarchical": lambda: HMM(states=6, features=2, hierarchical=True, stickiness=5.0),
    "very sticky": lambda: HMM(states=3, features=2, hierarchical=True, stickiness=1e30),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("missing", [False, True], ids=["complete", "with gaps"])
def test_the_bound_never_goes_down(make, missing):
    x = holes(blobs()) if missing else blobs()
    for start in ("kmeans", "random"):
        bounds = run(make(), x, start=start, max_steps=40, tol=0).history["elbo"]
        assert (bounds.diff().dropna() > -1e-9 * bounds.abs().max()).all()
        assert bounds.iloc[-1] > bounds.iloc[0]


@pytest.mark.parametrize("emission", [Poisson(2), Bernoulli(2)], ids=["poisson", "bernoulli"])
def test_the_bound_never_goes_down_for_counts(emission):
    x = torch.randint(2, (3, 40, 2)).double() * torch.tensor([[[1.0]], [[1.0]], [[0.0]]])
    bounds = run(HMM(states=2, emission=emission), holes(x), max_steps=40, tol=0).history["elbo"]
    assert (bounds.diff().dropna() > -1e-9 * bounds.abs().max()).all()


def test_a_wrong_step_is_caught_because_the_bound_goes_down(monkeypatch):
    """The planted bug: each update counts the data twice."""
    honest = engine.updated
    monkeypatch.setattr(engine, "updated", lambda prior, s, scale=1.0: honest(prior, s, 2 * scale))
    with pytest.raises(FitError, match="the bound went down from .* which must not happen"):
        run(HMM(states=3, features=2), blobs(), tol=0)


def test_with_one_state_the_bound_is_the_marginal_likelihood():
    """Gaussian data are conjugate: the evidence is a difference of log-normalisers."""
    x = blobs(2, 30)
    model = HMM(states=1, features=2)
    family, prior = model.natural_prior()["emission"]
    rows = x.reshape(-1, 2)
    n = torch.tensor([float(len(rows))]).double()
    counts = {"precision": rows.mT @ rows, "linear": rows.sum(0), "quadratic": n, "log_det": n}
    posterior = {name: prior[name] + counts[name] for name in prior}
    assert isinstance(family, NormalInverseWishart)
    evidence = family.log_normalizer(posterior) - family.log_normalizer(prior) - len(rows) * np.log(2 * np.pi)
    fit = run(model, x)
    assert fit.history["elbo"].iloc[-1] == pytest.approx(float(evidence), abs=1e-8)
    assert fit.attrs["converged"]


def test_with_one_state_an_autoregression_has_the_marginal_likelihood():
    x = normal(2, 20, 2).cumsum(1)
    model = HMM(states=1, emission=Autoregressive(2, 2, initial_scale=1.5))
    family, prior = model.natural_prior()["emission"]
    assert isinstance(family, MatrixNormalInverseWishart)
    y = x[:, 2:].reshape(-1, 2)
    r = torch.cat([x[:, 1:-1], x[:, :-2], torch.ones(2, 18, 1).double()], -1).reshape(-1, 5)
    n = torch.tensor([float(len(y))]).double()
    counts = {"precision": y.mT @ y, "linear": y.mT @ r, "quadratic": r.mT @ r, "log_det": n}
    posterior = {name: prior[name] + counts[name] for name in prior}
    evidence = family.log_normalizer(posterior) - family.log_normalizer(prior) - len(y) * np.log(2 * np.pi)
    first, step = x[:, 0].flatten(), (x[:, 1] - x[:, 0]).flatten()
    evidence = evidence + log_normal(first, torch.zeros(4).double(), 1.5**2 * torch.eye(4).double())
    evidence = evidence + log_normal(step, torch.zeros(4).double(), 0.3**2 * torch.eye(4).double())
    assert run(model, x).history["elbo"].iloc[-1] == pytest.approx(float(evidence), abs=1e-8)


def test_the_bound_is_below_the_evidence_of_a_tiny_model():
    """Two Bernoulli states over three steps: the evidence is a sum over paths of beta integrals."""
    x = torch.tensor([[[1.0], [0.0], [1.0]]]).double()
    model = HMM(states=2, emission=Bernoulli(1))
    prior = model.natural_prior()
    total = []
    for path in itertools.product(range(2), repeat=3):
        counts = {name: {k: torch.zeros_like(v) for k, v in factor.eta.items()} for name, factor in prior.items()}
        counts["initial"]["log_probability"][path[0]] += 1
        for a, b in itertools.pairwise(path):
            counts["transition"]["log_probability"][a, b] += 1
        for t, k in enumerate(path):
            counts["emission"]["log_one"][k] += x[0, t]
            counts["emission"]["log_zero"][k] += 1 - x[0, t]
        total.append(
            sum(
                (f.log_normalizer({k: v + counts[name][k] for k, v in e.items()}) - f.log_normalizer(e)).sum()
                for name, (f, e) in prior.items()
            )
        )
    evidence = float(torch.stack(total).logsumexp(0))
    bound = run(model, x, tol=0, max_steps=200).history["elbo"].iloc[-1]
    assert evidence - 1.5 < bound < evidence


def test_steps_on_batches_come_near_the_optimum_of_the_whole():
    x = holes(blobs(30, 40))
    whole = run(HMM(states=3, features=2), x, tol=1e-8)
    batches = run(HMM(states=3, features=2), x, batch_size=5, max_steps=300, tol=0, delay=10)
    best, reached = whole.history["elbo"].iloc[-1], batches.history["elbo"].iloc[-1]
    assert reached < best + 1e-6
    assert reached > best - 0.01 * abs(best)


def test_a_batch_of_everything_with_full_steps_is_coordinate_ascent():
    x = blobs(4, 30)
    start = run(HMM(states=3, features=2), x, max_steps=1, start="random")
    whole = run(HMM(states=3, features=2), x, max_steps=5, tol=0, start=start)
    options = {"batch_size": 4, "delay": 0, "forgetting": 1e-12}  # steps of size one
    batched = run(HMM(states=3, features=2), x, max_steps=5, tol=0, start=start, **options)
    np.testing.assert_allclose(batched.history["elbo"][:5], whole.history["elbo"], rtol=1e-9)


def test_a_ragged_collection_is_the_array_with_trailing_nan():
    x = blobs(2, 40)
    short = x.clone()
    short[1, 25:] = torch.nan
    named = run(HMM(states=2, features=2), {"a": x[0].numpy(), "b": x[1, :25].numpy()})
    padded = run(HMM(states=2, features=2), short)
    assert same(named, padded)
    assert list(named.labels["sequence"]) == ["a", "b"]


def test_batches_for_memory_do_not_change_the_fit(monkeypatch):
    x = holes(blobs(5, 30))
    whole = run(HMM(states=3, features=2), x, start="segments-8", max_steps=10, tol=0)
    monkeypatch.setattr("ppgen.inference.vb.batches.STEPS_AT_ONCE", 60)
    parts = run(HMM(states=3, features=2), x, start="segments-8", max_steps=10, tol=0)
    assert len(parts.history) == 10
    np.testing.assert_allclose(parts.history["elbo"].iloc[-1], whole.history["elbo"].iloc[-1], rtol=0.05)


def test_restarts_keep_the_best_and_tell_the_spread():
    fit = run(HMM(states=4, features=2), blobs(), n_init=4, max_steps=30)
    bounds = fit.attrs["restart_elbos"]
    assert len(bounds) == 4
    kept = fit.history[fit.history["kept"]]
    assert kept["elbo"].iloc[-1] == max(bounds)
    assert fit.history.groupby("init")["elbo"].last().tolist() == bounds


@pytest.mark.parametrize("batch_size", [None, 2])
def test_the_same_seed_gives_the_same_fit_and_globals_are_left_alone(batch_size):
    x = holes(blobs())
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 (the global one is meant)
    fits = [run(MODELS["hierarchical"](), x, n_init=2, max_steps=15, batch_size=batch_size) for _ in range(2)]
    assert same(*fits)
    assert torch.get_rng_state().equal(before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    other = run(MODELS["hierarchical"](), x, n_init=2, max_steps=15, batch_size=batch_size, random_seed=2)
    assert not same(fits[0], other)


def test_the_model_given_is_not_changed():
    model = MODELS["hierarchical"]()
    run(model, blobs(), max_steps=5)
    assert (model.usage_logits == 0).all()


CHECKPOINTED = {
    "whole": ("autoregressive", {}),
    "hierarchical": ("hierarchical", {"n_init": 3}),
    "batches": ("gaussian", {"batch_size": 2}),
}


@pytest.mark.parametrize(("name", "options"), CHECKPOINTED.values(), ids=CHECKPOINTED.keys())
def test_a_run_that_goes_on_from_a_checkpoint_equals_one_that_never_stopped(name, options, tmp_path):
    x, options = holes(blobs()), {"tol": 0, **options}
    whole = run(MODELS[name](), x, max_steps=25, **options)
    run(MODELS[name](), x, max_steps=11, checkpoint=tmp_path / "run", **options)
    resumed = run(MODELS[name](), x, max_steps=25, checkpoint=tmp_path / "run", checkpoint_every=4, **options)
    assert same(resumed, whole)
    again = run(MODELS[name](), x, max_steps=25, checkpoint=tmp_path / "run", **options)
    assert same(again, whole)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def interrupt_after(monkeypatch, steps, error=KeyboardInterrupt):
    """Raise in the middle of a later step."""
    honest, calls = engine._divergence, itertools.count()

    def counted(*args):
        if next(calls) == steps:
            raise error
        return honest(*args)

    monkeypatch.setattr(engine, "_divergence", counted)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_run_that_was_killed_between_saves_goes_on_bit_for_bit(batch_size, tmp_path, monkeypatch):
    x, options = holes(blobs()), {"tol": 0, "max_steps": 20, "batch_size": batch_size, "n_init": 2}
    whole = run(HMM(states=3, features=2), x, **options)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 33, RuntimeError)
        with pytest.raises(RuntimeError):
            run(HMM(states=3, features=2), x, checkpoint=tmp_path / "run", checkpoint_every=5, **options)
    assert same(run(HMM(states=3, features=2), x, checkpoint=tmp_path / "run", **options), whole)


def test_without_a_seed_a_run_goes_on_with_the_seed_it_had(tmp_path):
    x, options = blobs(), {"tol": 0, "batch_size": 1, "random_seed": None, "checkpoint": tmp_path / "run"}
    first = run(HMM(states=3, features=2), x, max_steps=5, **options)
    resumed = run(HMM(states=3, features=2), x, max_steps=12, **options)
    whole = run(HMM(states=3, features=2), x, max_steps=12, tol=0, batch_size=1, random_seed=first.attrs["random_seed"])
    assert same(resumed, whole)


def test_an_interruption_gives_back_what_was_reached_and_can_go_on(tmp_path, monkeypatch):
    x, options = holes(blobs()), {"tol": 0, "max_steps": 6, "n_init": 2, "checkpoint": tmp_path / "run"}
    with monkeypatch.context() as patch:
        interrupt_after(patch, 9)
        fit = run(HMM(states=3, features=2), x, **options)
    assert fit.attrs["interrupted"]
    assert not fit.attrs["converged"]
    assert fit.history.groupby("init").size().tolist() == [6, 3]
    assert not fit.diagnose().ok
    whole = run(HMM(states=3, features=2), x, tol=0, max_steps=6, n_init=2)
    assert same(run(HMM(states=3, features=2), x, **options), whole)


def test_an_interruption_before_the_first_step_has_nothing_to_give_back(monkeypatch):
    interrupt_after(monkeypatch, 0)
    with pytest.raises(KeyboardInterrupt):
        run(HMM(states=3, features=2), blobs())


@pytest.fixture
def saved(tmp_path):
    run(HMM(states=3, features=2), blobs(), max_steps=5, tol=0, checkpoint=tmp_path / "run")
    return tmp_path / "run"


def test_a_checkpoint_of_another_fit_is_refused(saved):
    torch.manual_seed(0)
    x = blobs()
    with pytest.raises(FileError, match="checkpoint .* must hold this run, but its data differ; use another folder"):
        run(HMM(states=3, features=2), x + 1, tol=0, checkpoint=saved)
    with pytest.raises(FileError, match="its model, data differ|its model differ"):
        run(HMM(states=3, features=2, stickiness=1.0), x, tol=0, checkpoint=saved)
    with pytest.raises(FileError, match="options differ"):
        run(HMM(states=3, features=2), x, tol=0, random_seed=5, checkpoint=saved)


@pytest.mark.parametrize("damage", ["flip at the start", "flip", "cut", "empty"])
def test_a_damaged_checkpoint_is_refused(saved, damage):
    file = saved / "vb.safetensors"
    content = bytearray(file.read_bytes())
    if damage.startswith("flip"):
        content[len(content) // 2 if damage == "flip" else 99] ^= 1
    file.write_bytes({"cut": content[:-9], "empty": b""}.get(damage, content))
    torch.manual_seed(0)
    with pytest.raises(FileError, match=r"vb: checkpoint .*run cannot be read \(.*\); delete it to start anew"):
        run(HMM(states=3, features=2), blobs(), max_steps=5, tol=0, checkpoint=saved)


@pytest.mark.parametrize("content", [{}, {"identity": {}}, {"identity": 3, "states": [], "seed": 1}])
def test_a_foreign_file_in_the_place_of_a_checkpoint_is_refused(saved, content):
    write_tensors(saved / "vb.safetensors", {"a": torch.zeros(1)}, content)
    with pytest.raises(FileError, match="cannot be read|must hold this run"):
        run(HMM(states=3, features=2), blobs(), checkpoint=saved)


def test_a_folder_of_other_files_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileError, match="checkpoint"):
        run(HMM(states=3, features=2), blobs(), checkpoint=tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_run_killed_in_its_first_save_begins_anew(tmp_path):
    (tmp_path / ".vb.safetensors.ppgen-new").write_bytes(b"half")
    (tmp_path / LOCK).write_text("process 1 on elsewhere")
    assert len(run(HMM(states=3, features=2), blobs(), max_steps=5, tol=0, checkpoint=tmp_path).history) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["vb.safetensors"]


def test_two_runs_cannot_share_a_checkpoint(tmp_path):
    with held(tmp_path, "vb"), pytest.raises(FileError, match="vb: .* must be written by one run at a time, process"):
        run(HMM(states=3, features=2), blobs(), checkpoint=tmp_path)


def test_a_checkpoint_is_that_of_its_start(tmp_path):
    """Two earlier fits of one model, length and engine are two starts."""
    x = blobs()
    first, second = (run(HMM(states=3, features=2), x, max_steps=3, tol=0, random_seed=seed) for seed in (1, 2))
    options = {"max_steps": 2, "tol": 0, "checkpoint": tmp_path / "run"}
    begun = run(HMM(states=3, features=2), x, start=first, **options)
    assert same(run(HMM(states=3, features=2), x, start=first, **options), begun)
    with pytest.raises(FileError, match="must hold this run, but its options differ"):
        run(HMM(states=3, features=2), x, start=second, **options)


@pytest.mark.slow
def test_a_killed_process_goes_on_bit_for_bit(tmp_path):
    program = (
        "import torch; from ppgen.models import HMM; from ppgen.inference import vb\n"
        "torch.manual_seed(0); x = torch.randn(3, 400, 2).double()\n"
        "vb.fit(HMM(states=4, features=2), x, random_seed=1, progressbar=False, tol=0, max_steps=100000,"
        f" checkpoint={str(tmp_path / 'run')!r}, checkpoint_every=3)"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    saved, deadline = tmp_path / "run" / "vb.safetensors", time.monotonic() + 120
    while not saved.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    torch.manual_seed(0)
    x = torch.randn(3, 400, 2).double()
    steps = len(read_tensors(saved)[0]["states"][0]["rows"]) + 10
    options = {"tol": 0, "max_steps": steps}
    resumed = run(HMM(states=4, features=2), x, checkpoint=tmp_path / "run", **options)
    assert same(resumed, run(HMM(states=4, features=2), x, **options))


def bounds_of(*gains):
    return [{"elbo": float(value)} for value in np.cumsum([-100.0, *gains])]


def test_what_is_left_to_gain_is_told_by_how_gains_shrink():
    """Of a geometric series exactly; what no longer shrinks is followed for 500 steps."""
    gains = 2.0 * 0.9 ** np.arange(12)
    assert engine.left_to_gain(bounds_of(*gains)) == pytest.approx(gains[-1] * 0.9 / 0.1)
    assert engine.left_to_gain(bounds_of(*[0.1] * 12)) == pytest.approx(0.1 * 499)
    assert engine.left_to_gain(bounds_of(1.0, 0.0)) == 0
    assert engine.left_to_gain(bounds_of()) == np.inf


def test_a_large_recording_that_is_still_gaining_nats_has_not_converged(monkeypatch):
    """Per entry the gain is small from the first step on, as that of 100,000 frames is."""
    monkeypatch.setattr(engine, "IN_ALL", float("inf"))
    x, options = blobs(3, 200, gap=1.5), {"tol": 2e-3, "start": "random"}
    early = run(HMM(states=3, features=2), x, **options)
    monkeypatch.setattr(engine, "IN_ALL", 50.0)
    later = run(HMM(states=3, features=2), x, **options)
    assert early.attrs["converged"]
    assert later.attrs["converged"]
    assert len(later.history) > len(early.history)
    assert (
        engine.left_to_gain(later.history.to_dict("records"))
        < 0.1
        < engine.left_to_gain(early.history.to_dict("records"))
    )


def test_the_density_of_learned_scales_is_normalised():
    """Along one log scale, the others at their centres."""
    model = HMM(states=1, emission=Autoregressive(1, 1), learn_prior=True)
    grid = torch.linspace(-30, 30, 6001).double()
    centre = model.log_scales.detach().clone()
    total = []
    for step in grid:
        model.log_scales.data = centre + torch.eye(len(centre))[0].double() * step
        total.append(model.log_hyperprior().detach().exp())
    rest = (2 * np.pi * 4) ** (-0.5 * (len(centre) - 1))
    assert float(torch.trapezoid(torch.stack(total), grid)) == pytest.approx(rest, rel=1e-9)


def test_what_the_bound_bounds_is_said():
    assert run(HMM(states=2, features=2), blobs(), max_steps=2).attrs["elbo"] == "a lower bound of log p(x)"
    fit = run(MODELS["hierarchical"](), blobs(), max_steps=2)
    assert fit.attrs["elbo"].startswith("a lower bound of log p(x, usage_logits) at their point estimates; it may lie")


def test_a_fit_goes_on_from_an_earlier_one():
    x = blobs()
    first = run(MODELS["hierarchical"](), x, max_steps=10, tol=0)
    second = run(MODELS["hierarchical"](), x, start=first, max_steps=10, tol=0)
    whole = run(MODELS["hierarchical"](), x, max_steps=20, tol=0)
    np.testing.assert_allclose(second.history["elbo"], whole.history["elbo"][10:], rtol=1e-12)


def test_a_start_from_another_model_is_refused():
    first = run(HMM(states=2, features=2), blobs(), max_steps=3)
    with pytest.raises(DataError, match="vb: start must be a fit of this model, with factors"):
        run(HMM(states=3, features=2), blobs(), start=first)
    settings = {"guide": "mean_field", "max_steps": 2, "draws": 2, "progressbar": False, "random_seed": 0}
    other = svi.fit(HMM(states=2, features=2), blobs(), **settings)
    with pytest.raises(DataError, match="vb: start must be a fit with factors, got draws; leave start out, or pass"):
        run(HMM(states=2, features=2), blobs(), start=other)
    with pytest.raises(DataError, match='a start is "kmeans", "random" or "segments-<steps>", got \'best\''):
        run(HMM(states=2, features=2), blobs(), start="best")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "vb: max_steps must be at least 1, got 0"),
        ({"n_init": 0}, "vb: n_init must be at least 1, got 0"),
        ({"checkpoint_every": 0}, "vb: checkpoint_every must be at least 1, got 0"),
        ({"batch_size": 4}, "vb: batch_size must be between 1 and the 3 sequences of x, got 4"),
        ({"batch_size": 0}, "vb: batch_size must be between 1 and the 3 sequences of x, got 0"),
        ({"tol": -1.0}, "vb: tol must be zero or more, got -1.0"),
        ({"tol": float("nan")}, "vb: tol must be zero or more, got nan"),
        ({"delay": -2}, "vb: delay must be zero or more, got -2"),
        ({"forgetting": 1.5}, "vb: forgetting must be above 0 and at most 1, got 1.5"),
    ],
)
def test_bad_options_are_refused_in_words(options, message):
    with pytest.raises(DataError, match=message):
        run(HMM(states=2, features=2), blobs(), **options)


def test_data_that_no_model_can_take_is_refused():
    infinite = blobs()
    infinite[1, 2, 0] = torch.inf
    with pytest.raises(DataError, match="infinite|finite"):
        run(HMM(states=2, features=2), infinite)
    with pytest.raises(DataError, match=r"HMM: x must have at least as many frames as states \(2\), got 0"):
        run(HMM(states=2, features=2), torch.full((2, 5, 2), torch.nan))


def test_data_too_large_for_doubles_is_said_in_words():
    with pytest.raises(DataError, match=r"x must lie within 1e\+100 of zero, got .*; scale the features"):
        run(HMM(states=2, features=2), 1e200 * blobs())


def test_a_folder_with_other_files_is_left_alone_and_an_empty_one_used(tmp_path):
    (tmp_path / "mine").mkdir()
    fitted = vb.fit(
        HMM(states=2, features=1), torch.randn(1, 9, 1), max_steps=2, progressbar=False, checkpoint=tmp_path / "mine"
    )
    assert len(fitted.history) == 2
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileError, match="must be empty or hold a checkpoint, got .'mine'.*; name another folder"):
        vb.fit(HMM(states=2, features=1), torch.randn(1, 9, 1), max_steps=2, progressbar=False, checkpoint=tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
