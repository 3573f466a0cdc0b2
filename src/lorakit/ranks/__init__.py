"""Ranks of layers before training: allocation under a budget, and a probe of layers."""
