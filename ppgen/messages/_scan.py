"""Placeholder module docstring."""
