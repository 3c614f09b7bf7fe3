"""A keyword that an engine does not have is refused with the one that was meant."""

import inspect

import pytest

import ppgen
from ppgen.inference import calibration, mcmc, svi, vb
from ppgen.models import GMM, HMM, LDS


@pytest.mark.parametrize(
    ("engine", "keyword", "message"),
    [
        (svi.fit, "num_particles", "svi: 'num_particles' is not an option; write particles="),
        (svi.fit, "num_samples", "svi: 'num_samples' is not an option; write draws="),
        (svi.fit, "n_iter", "write max_steps="),
        (svi.fit, "batchsize", "write batch_size="),
        (mcmc.fit, "num_samples", "mcmc: 'num_samples' is not an option; write draws="),
        (mcmc.fit, "warmup_steps", "write tune="),
        (mcmc.fit, "seed", "write random_seed="),
        (
            mcmc.fit,
            "quux",
            "mcmc: 'quux' is not an option; the options are model, u, .*what a program takes goes in order",
        ),
        (vb.fit, "n_iter", "vb: 'n_iter' is not an option; write max_steps="),
        (
            svi.fit,
            "inputs",
            "svi: 'inputs' is not an option; write u= where it is a Model; what a program takes goes in order",
        ),
        (calibration.calibrate, "seed", "calibrate: 'seed' is not an option; write random_seed="),
    ],
)
def test_the_keyword_that_was_meant_is_named(engine, keyword, message):
    with pytest.raises(TypeError, match=message):
        engine(None, **{keyword: 3})


def test_the_signature_of_an_engine_is_its_own():
    assert "max_steps" in inspect.signature(svi.fit).parameters
    assert svi.fit.__doc__.startswith("Fit a guide")


@pytest.mark.parametrize(
    ("model", "keyword", "message"),
    [
        (GMM, "n_components", "GMM: 'n_components' is not an option; write components=$"),
        (GMM, "covariance_type", "GMM: 'covariance_type' is not an option; write covariance=$"),
        (HMM, "n_components", "HMM: 'n_components' is not an option; write states=$"),
        (HMM, "kappa", "write stickiness=$"),
        (LDS, "latent_dim", "LDS: 'latent_dim' is not an option; write latent=$"),
        (LDS, "quux", "LDS: 'quux' is not an option; the options are latent, features, inputs, .*strength$"),
    ],
)
def test_models_name_the_option_that_was_meant(model, keyword, message):
    with pytest.raises(TypeError, match=message):
        model(**{keyword: 3})
    assert next(iter(inspect.signature(model).parameters)) != "args"


def test_a_model_of_ones_own_names_its_options_and_keeps_what_takes_any():
    class Own(ppgen.Model):
        dims, config = {}, {}

        def __init__(self, widths):
            super().__init__()
            self.widths = widths

        def model(self, x, *, u=None, total=None): ...

    class More(Own):
        def __init__(self, **options):
            super().__init__(options["any"])

    with pytest.raises(TypeError, match="Own: 'width' is not an option; write widths="):
        Own(width=3)
    assert Own(widths=3).widths == More(any=3).widths == 3
