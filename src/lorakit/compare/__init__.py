"""Comparison of LoRA with other methods on one task."""
