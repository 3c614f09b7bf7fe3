"""Models, one a file."""

from ppgen.models.cca import CCA
from ppgen.models.factorial_hmm import FactorialHMM
from ppgen.models.gmm import GMM
from ppgen.models.hmm import HMM
from ppgen.models.lds import LDS
from ppgen.models.slds import SLDS

__all__ = ["CCA", "FactorialHMM", "GMM", "HMM", "LDS", "SLDS"]
