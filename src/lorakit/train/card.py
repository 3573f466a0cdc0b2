"""The model card of an adapter: README.md, as hubs read it."""

import json

from lorakit.models.tasks import TASKS
from lorakit.spec import SCALES
from lorakit.train.report import RunReport

TEMPLATE = """---
base_model: {model}
library_name: peft
pipeline_tag: {pipeline}
tags:
- lora
- lorakit
---

# A LoRA adapter of {model}

Rank {rank}, scale {scale:g}, {modules} layers adapted, \
{trained:,} of {total:,} parameters trained.

| held-out data | before | after |
| --- | ---: | ---: |
{rows}Trained on `{data}` ({data_rows:,} rows, SHA-256 `{data_hash}`), \
{steps:,} steps, {tokens:,} tokens, {seconds:.0f} s, seed {seed}. \
Fingerprint of the base: `{fingerprint}`.

It loads with `lorakit.Adapter.load(folder)`, \
with PEFT's `PeftModel.from_pretrained(base, folder)`, and wherever PEFT adapters load.

```json
{spec}
```
"""


def model_card(report: RunReport) -> str:
    """Return the card of a run as Markdown, with the front matter that hubs index."""
    spec = report["spec"]
    scale = SCALES[spec["scale_rule"]](spec["alpha"], spec["rank"])
    return TEMPLATE.format(
        model=report["model_name"],
        pipeline=TASKS[report["task"]].pipeline,
        rank=spec["rank"],
        scale=scale,
        modules=report["adapted_modules"],
        trained=report["trainable_parameters"],
        total=report["total_parameters"],
        rows=_metric_rows(report),
        data=_name_data(report["settings"]["data"]),
        data_rows=report["rows"],
        data_hash=report["data_hash"][:16],
        steps=report["steps"],
        tokens=report["tokens"],
        seconds=report["wall_seconds"],
        seed=report["seed"],
        fingerprint=report["base_fingerprint"],
        spec=json.dumps(spec, indent=2),
    )


def is_model_card(text: bytes) -> bool:
    """Return True if a README.md is the card of a run of lorakit."""
    front_matter = text.partition(b"\n---\n")[0]
    return front_matter.startswith(b"---\n") and front_matter.endswith(b"\n- lorakit")


def _metric_rows(report: RunReport) -> str:
    """Return a row of the table for each metric, and the empty line after them."""
    before, after = report["before"] or {}, report["after"] or {}
    rows = [
        f"| {name} | {_format_number(before.get(name))} | {_format_number(value)} |\n"
        for name, value in after.items()
    ]
    return "".join(rows) + "\n"


def _format_number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _name_data(data: str | list[str]) -> str:
    return data if isinstance(data, str) else "`, `".join(data)
