"""Simulator: `engine` (time), `programs` (who does what in which order), `calibration`, `forecast`, `command`."""
