"""Starts: the initial values of A and B."""
