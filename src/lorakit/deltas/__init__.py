"""Deltas: the ways to write a change of a matrix."""
