"""Pyro's errors about plates of the wrong size, in words that name what to write."""

import re

from ppgen.errors import DataError

__all__ = ["plate_in_words"]

MISMATCH = re.compile(r"Shape mismatch inside plate\('(.+)'\) at site (.+) dim (-\d+), (\d+) vs (\d+)")
SUBSAMPLE = re.compile(r"subsample_size does not match len\(subsample\), (\d+) vs (\d+)")


def plate_in_words(error: ValueError) -> ValueError:
    """A `DataError` for an error of Pyro's about a plate; any other error unchanged."""
    words = str(error)
    if found := MISMATCH.search(words):
        plate, site, axis, size, came = found.groups()
        return DataError(
            f"program: site {site!r} must have the size of plate {plate!r}, {size}, along axis {axis}, got {came}; "
            f"make the plate as long as what is in it, as `with pyro.plate({plate!r}, total or len(x), "
            "subsample_size=len(x)):` does, or take an axis to the right into the event by `.to_event(1)`"
        )
    if found := SUBSAMPLE.search(words):
        sizes = " and ".join(found.groups())
        return DataError(
            f"program: a plate must have one size in the model and the guide, got {sizes}; write it in both as "
            "`with pyro.plate(..., total or len(x), subsample_size=len(x)):`"
        )
    return error
