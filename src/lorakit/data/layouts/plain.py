"""Texts, and prompts with their completions."""

from lorakit.data.layouts.layout import Layout

LAYOUTS = [
    Layout("prompt and completion", "completion", ("prompt", "completion")),
    Layout("prompts", "prompt", ("prompt",)),
    Layout("text", "text", ("text",)),
]
