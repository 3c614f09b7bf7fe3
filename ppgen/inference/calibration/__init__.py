"""Simulation-based calibration of any engine."""

from ppgen.inference.calibration.engine import Calibration, calibrate

__all__ = ["Calibration", "calibrate"]
