"""Data types and constants that all other packages use. Nothing here imports another package of edgeq."""
