"""Searches of the rank that is enough: one run and its truncations, growing, a threshold on singular values, and
advice.
"""
