"""The first step: the model, its inputs and the data that calibrates and evaluates it."""
