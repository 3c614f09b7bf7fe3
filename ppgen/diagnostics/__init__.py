"""Whether a fit can be trusted: checks on plain arrays, each a line in words."""
