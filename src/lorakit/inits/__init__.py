"""Starts: the first values of A and B."""
