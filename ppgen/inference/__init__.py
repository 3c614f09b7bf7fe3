"""Engines, one a file: ``from ppgen.inference import vb``."""
