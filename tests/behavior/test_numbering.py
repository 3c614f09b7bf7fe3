import numpy as np
import pytest
import torch

from ppgen.behavior.numbering import numbered, posterior_tree, selected
from ppgen.emissions.autoregressive import Autoregressive
from ppgen.errors import DataError
from ppgen.inference import svi, vb
from ppgen.models.hmm import HMM

K = 4


@pytest.fixture(scope="module")
def x():
    generator = np.random.default_rng(0)
    return np.cumsum(generator.normal(size=(2, 120, 2)), axis=1) * 0.2


@pytest.fixture(scope="module")
def fit(x):
    emission = Autoregressive(2, 1)
    model = HMM(K, emission=emission, stickiness=3.0, hierarchical=True, learn_prior=True)
    return vb.fit(model, x, max_steps=6, random_seed=0, progressbar=False)


def test_a_numbered_fit_says_the_same_under_other_names(fit, x):
    order = np.array([2, 0, 3, 1])
    new, z, z_new = numbered(fit, order), fit.latents(x), None
    z_new = new.latents(x)
    np.testing.assert_allclose(z_new["z"].to_numpy()[..., order], z["z"].to_numpy(), atol=1e-9)
    np.testing.assert_array_equal(z_new["z_mode"], order[z["z_mode"].to_numpy()])
    for name in ("initial", "transition", "emission"):
        for key, value in fit.posterior.factors[name].eta.items():
            moved = new.posterior.factors[name].eta[key][torch.as_tensor(order)]
            moved = moved[:, torch.as_tensor(order)] if name == "transition" else moved
            torch.testing.assert_close(moved, value)
    torch.testing.assert_close(new.model.usage[torch.as_tensor(order)], fit.model.usage)
    torch.testing.assert_close(new.posterior.points["usage"], new.model.usage)
    ratio, again = (one.diagnose(x, 25, random_seed=1).table for one in (fit, new))
    assert ratio["check"].tolist() == again["check"].tolist()


def test_the_fit_that_was_numbered_is_not_changed(fit):
    before = fit.model.usage.clone()
    numbered(fit, np.array([1, 0, 3, 2]))
    torch.testing.assert_close(fit.model.usage, before)


def test_a_selected_fit_never_visits_another_state(fit, x):
    """Its transition probabilities are those of the whole fit given that no other state follows."""
    kept = [3, 1]
    part = selected(fit, kept)
    rows = fit.posterior.factors["transition"].eta["log_probability"][kept][:, kept]
    torch.testing.assert_close(part.posterior.factors["transition"].eta["log_probability"], rows)
    assert part.posterior_predictive(x, draws=2, random_seed=0).shape == (2, *x.shape)
    assert part.latents(x).sizes["state"] == 2


def test_the_tree_has_syllables_for_states_and_says_which_are_used(fit, tmp_path):
    import xarray as xr

    posterior_tree(fit, [0, 2], 5, random_seed=0).to_netcdf(tmp_path / "p.nc", engine="h5netcdf")
    with xr.open_datatree(tmp_path / "p.nc", engine="h5netcdf") as tree:
        assert set(tree.children) == {"posterior", "sample_stats"}
        posterior = tree["posterior"].to_dataset()
        assert posterior["transition"].dims == ("chain", "draw", "syllable", "next_syllable")
        assert posterior["used"].astype(bool).to_numpy().tolist() == [True, False, True, False]
        assert "usage" not in posterior
        assert "prior" in posterior["prior_usage"].attrs["long_name"]


def test_another_fit_cannot_be_numbered(x):
    other = svi.fit(HMM(2, 2), x, guide="mean_field", max_steps=3, random_seed=0, progressbar=False)
    with pytest.raises(DataError, match="numbering: the fit must be of an HMM by vb"):
        numbered(other, np.arange(2))
