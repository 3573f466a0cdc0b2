"""The methods that LoRA is compared with, and the trial that measures them."""
