"""Other methods that LoRA is compared with."""
