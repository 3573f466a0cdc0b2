"""The model card of an adapter: README.md, as hubs read it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorakit.models.tasks import TASKS
from lorakit.plots.text_curve import draw_text_curve
from lorakit.spec import SCALES
from lorakit.text import plural
from lorakit.train.log import split_losses
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
{rows}## Training

- data: `{data}` ({data_rows:,} rows, SHA-256 `{data_hash}`)
{origin}- {steps:,} steps of {batch}, {tokens:,} tokens, {seconds:.0f} s, seed {seed}
- peak learning rate {lr:.3g}, {schedule} schedule
- fingerprint of the base: `{fingerprint}`
{curve}
## Use

```python
{snippet}
```

It also loads with PEFT's `PeftModel.from_pretrained(base, folder)` and wherever PEFT adapters load.

```json
{spec}
```
"""
SNIPPET = """\
import lorakit
from transformers import AutoTokenizer, {model_class}

model = {model_class}.from_pretrained("{model}"{labels})
lorakit.attach(model, lorakit.Adapter.load("{folder}"), trainable=False)
tokenizer = AutoTokenizer.from_pretrained("{model}")"""


def model_card(report: RunReport, lines: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the card of a run as Markdown, with the front matter that hubs index.

    It names no folder of the machine: of a path it has the last part.

    Args:
        report: of the run.
        lines: of its metrics.jsonl, for the curve.
    """
    spec, settings = report["spec"], report["settings"]
    scale = SCALES[spec["scale_rule"]](spec["alpha"], spec["rank"])
    return TEMPLATE.format(
        model=_last_part(report["model_name"]),
        pipeline=TASKS[report["task"]].pipeline,
        rank=spec["rank"],
        scale=scale,
        modules=report["adapted_modules"],
        trained=report["trainable_parameters"],
        total=report["total_parameters"],
        rows=_metric_rows(report),
        data=_name_data(settings["data"]),
        data_rows=report["rows"],
        data_hash=report["data_hash"][:16],
        origin=_describe_origin(report),
        steps=report["steps"],
        tokens=report["tokens"],
        seconds=report["wall_seconds"],
        seed=report["seed"],
        batch=_describe_batch(settings),
        lr=report["lr"],
        schedule=settings["schedule"],
        fingerprint=report["base_fingerprint"],
        curve=_draw_curve(lines),
        snippet=_write_snippet(report),
        spec=json.dumps(spec, indent=2),
    )


def is_model_card(text: bytes) -> bool:
    """Return True if a README.md is the card of a run of lorakit."""
    front_matter = text.partition(b"\n---\n")[0]
    return front_matter.startswith(b"---\n") and front_matter.endswith(b"\n- lorakit")


def _describe_origin(report: RunReport) -> str:
    """Return the line on the adapter that the run went on from; empty for a new adapter."""
    origin = report["started_from"]
    if origin is None:
        return ""
    name, digest = _last_part(origin["path"]), origin["content_hash"][:16]
    return f"- went on from the adapter `{name}` for {origin['task']} (SHA-256 `{digest}`)\n"


def _describe_batch(settings: Mapping[str, Any]) -> str:
    """Return the size of a step: in sequences, or in tokens where the settings count these."""
    passes = settings["accumulate"]
    if settings["batch_tokens"]:
        return f"about {passes * settings['batch_tokens']:,} tokens"
    return plural(passes * settings["batch_size"], "sequence")


def _draw_curve(lines: Sequence[Mapping[str, Any]]) -> str:
    curve = draw_text_curve(*split_losses(lines))
    return f"\n```text\n{curve}\n```\n" if curve else ""


def _write_snippet(report: RunReport) -> str:
    """Return Python code that loads the base and puts the adapter on it."""
    task = TASKS[report["task"]]
    outputs = {"classify": len(report["labels"]), "regress": 1}.get(task.name)
    return SNIPPET.format(
        model_class=task.model_class,
        model=_last_part(report["model_name"]),
        labels=f", num_labels={outputs}" if outputs else "",
        folder=_last_part(report["output"]),
    )


def _last_part(name: str) -> str:
    """Return the last part of an absolute path, and any other name as it is.

    >>> _last_part("/home/me/models/tiny"), _last_part("Qwen/Qwen3-0.6B")
    ('tiny', 'Qwen/Qwen3-0.6B')
    """
    path = Path(name).expanduser()
    return path.name if path.is_absolute() else name


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
    names = [data] if isinstance(data, str) else data
    return "`, `".join(map(_last_part, names))
