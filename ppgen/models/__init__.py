"""Models, one a file."""

from ppgen.models.cca import CCA
from ppgen.models.factorial_hmm import FactorialHMM
from ppgen.models.gmm import GMM
from ppgen.models.hmm import HMM
from ppgen.models.iohmm import IOHMM
from ppgen.models.lds import LDS
from ppgen.models.missing_mechanism import MissingMechanism
from ppgen.models.mixture_of_experts import MixtureOfExperts
from ppgen.models.slds import SLDS

__all__ = ["CCA", "FactorialHMM", "GMM", "HMM", "IOHMM", "LDS", "MissingMechanism", "MixtureOfExperts", "SLDS"]
