"""Engines, one a folder: ``from ppgen.inference import vb``."""
