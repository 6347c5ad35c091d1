"""Calibration data, and what is computed from it: activations, moments, least squares."""
