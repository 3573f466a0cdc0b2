"""Evaluation: loss and perplexity, metrics of classification, regression and text, generation."""
