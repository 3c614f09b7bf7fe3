"""Emissions: distributions of the data given a state or a latent."""

from ppgen.emissions.autoregressive import Autoregressive
from ppgen.emissions.bernoulli import Bernoulli
from ppgen.emissions.categorical import Categorical
from ppgen.emissions.driven import DrivenGaussian
from ppgen.emissions.emission import Emission
from ppgen.emissions.gaussian import Gaussian
from ppgen.emissions.poisson import Poisson
from ppgen.emissions.subspace import Subspace

__all__ = [
    "Autoregressive",
    "Bernoulli",
    "Categorical",
    "DrivenGaussian",
    "Emission",
    "Gaussian",
    "Poisson",
    "Subspace",
]
