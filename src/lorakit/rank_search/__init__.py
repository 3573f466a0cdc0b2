"""Searches of the rank that is enough: truncations of one run, growing, thresholds, advice."""
