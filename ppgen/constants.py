"""Numbers that several packages use."""

import math

__all__ = ["LOG_2PI"]

LOG_2PI = math.log(2 * math.pi)  # in the log density of every normal
