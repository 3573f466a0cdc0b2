"""Where LoRA can act: each kind of layer, and how it holds its matrix."""
