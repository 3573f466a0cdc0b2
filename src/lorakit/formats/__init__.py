"""Adapters on disk, one file a family. `read` and `write` are what Adapter.load and Adapter.save call."""

from lorakit.formats.peft import read, write

__all__ = ["read", "write"]
