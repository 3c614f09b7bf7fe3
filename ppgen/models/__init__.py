"""Models, one a file."""

from ppgen.models.gmm import GMM
from ppgen.models.hmm import HMM
from ppgen.models.lds import LDS

__all__ = ["GMM", "HMM", "LDS"]
