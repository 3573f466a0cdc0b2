"""PEFT's layout, which is lorakit's own: `adapter_config.json` and `adapter_model.safetensors`."""
