"""A keyword that an engine does not have is refused with the one that was meant."""

import inspect

import pytest

from ppgen.inference import calibration, mcmc, svi, vb


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
        (calibration.calibrate, "seed", "calibrate: 'seed' is not an option; write random_seed="),
    ],
)
def test_the_keyword_that_was_meant_is_named(engine, keyword, message):
    with pytest.raises(TypeError, match=message):
        engine(None, **{keyword: 3})


def test_the_signature_of_an_engine_is_its_own():
    assert "max_steps" in inspect.signature(svi.fit).parameters
    assert svi.fit.__doc__.startswith("Fit a guide")
