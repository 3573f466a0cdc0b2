"""Deltas: parameterisations of the change of a matrix."""
