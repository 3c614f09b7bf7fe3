"""The checker that runs annotations in tests: beartype, for which a whole number is a good float, as Python says."""

from beartype import BeartypeConf, beartype

__all__ = ["check"]

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
