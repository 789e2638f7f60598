"""The first step: load the model, its inputs, and the calibration and evaluation data."""
