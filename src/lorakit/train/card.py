"""The model card that lies beside an adapter: README.md, as hubs read it."""

import json
from typing import Any

from lorakit.models.tasks import TASKS


def text(report: dict[str, Any]) -> str:
    """Return the card of a run as Markdown, with the front matter that hubs index."""
    spec, settings = report["spec"], report["settings"]
    measures = report["after"] or {}
    rows = [
        f"| {name} | {_number((report['before'] or {}).get(name))} | {_number(value)} |"
        for name, value in measures.items()
    ]
    scale = spec["alpha"] / (
        spec["rank"] if spec["scale_rule"] == "alpha/rank" else spec["rank"] ** 0.5
    )
    return "\n".join(
        [
            "---",
            f"base_model: {report['model_name']}",
            "library_name: peft",
            f"pipeline_tag: {TASKS[report['task']].pipeline}",
            "tags:",
            "- lora",
            "- lorakit",
            "---",
            "",
            f"# A LoRA adapter of {report['model_name']}",
            "",
            f"Rank {spec['rank']}, scale {scale:g}, {report['adapted_modules']} layers adapted, "
            f"{report['trainable_parameters']:,} of {report['total_parameters']:,} parameters trained.",
            "",
            "| held-out data | before | after |",
            "| --- | ---: | ---: |",
            *rows,
            "",
            f"Trained on `{settings['data']}` ({report['rows']:,} rows, SHA-256 `{report['data_hash'][:16]}`), "
            f"{report['steps']:,} steps, {report['tokens']:,} tokens, {report['seconds']:.0f} s, seed {report['seed']}. "
            f"Fingerprint of the base: `{report['base_fingerprint']}`.",
            "",
            "It loads with `lorakit.Adapter.load(folder)`, with PEFT's `PeftModel.from_pretrained(base, folder)`, "
            "and wherever PEFT adapters load.",
            "",
            "```json",
            json.dumps(spec, indent=2),
            "```",
            "",
        ]
    )


def _number(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
