"""Tasks: how rows are encoded for each, its loss, its predictions and its metrics."""
