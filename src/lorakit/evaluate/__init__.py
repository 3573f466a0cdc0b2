"""How good a model is: loss and perplexity, classification and regression metrics, generated text
and its metrics.
"""
