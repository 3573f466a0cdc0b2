"""The training run: its settings, the one loop, checkpoints and resuming, and what it reports."""
