"""Nouns without behaviour: what every other room reads. Nothing here imports another room."""
