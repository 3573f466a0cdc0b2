"""Adapters on disk: one room or file for each family of files."""
