"""Adapters on a model: attach, detach, enable, and what is attached where."""
