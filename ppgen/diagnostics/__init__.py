"""Checks on plain arrays that decide whether a fit can be trusted, each a line in words."""
