"""`lorakit generate`."""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.cli import flags
from lorakit.cli.evaluate import Source, Subject, add_decoding, needed, rows_of
from lorakit.errors import DataError, OutputError, SpecError
from lorakit.spec import option


@dataclass(frozen=True, kw_only=True)
class Asking:
    """What is asked, and where the answers go."""

    prompt: tuple[str, ...] = option((), "one or more prompts", several=True)
    output: str | None = option(None, "JSONL file for the answers to --data", type=str)
    chat: bool = option(
        False, "each prompt is a user's turn, and goes through the model's chat template"
    )
    batch_size: int = option(16, "prompts at once", least=1)
    seed: int = option(0, "of sampling", least=0)


def add(parser: argparse.ArgumentParser) -> None:
    flags.add_fields(parser, Subject, "the model")
    flags.add_fields(parser, Asking, "the prompts")
    flags.add_fields(parser, Source, "prompts from a file, instead of --prompt")
    add_decoding(parser, "how to write")


def main(args: argparse.Namespace) -> dict[str, Any]:
    from lorakit.evaluate.decoding import Decoding

    a, b, c, d = flags.values(args, Subject, Asking, Source, Decoding)
    needed(a, "model")
    subject, asking, source, how = Subject(**a), Asking(**b), Source(**c), Decoding(**d)
    if bool(asking.prompt) == bool(source.data):
        raise SpecError("Give either --prompt or --data.", advice="Nothing was started.")
    if asking.output and Path(asking.output).exists():
        raise OutputError(
            f"{asking.output} exists already.", advice="Name a new file. Nothing was written."
        )
    import torch

    from lorakit.adapter import Adapter
    from lorakit.evaluate.generate import generate
    from lorakit.models.open import open_model
    from lorakit.train.log import progress_bar

    if subject.threads:
        torch.set_num_threads(subject.threads)
    prompts = list(asking.prompt) if asking.prompt else _prompts(source)
    adapter = Adapter.load(subject.adapter) if subject.adapter else None
    loaded = open_model(
        subject.model,
        adapter,
        "causal-lm",
        dtype=subject.dtype,
        device=subject.device,
        any_base=subject.any_base,
    )
    turns = [
        [{"role": "user", "content": p}] if asking.chat and isinstance(p, str) else p
        for p in prompts
    ]
    if any(isinstance(t, list) for t in turns) and not getattr(
        loaded.tokenizer, "chat_template", None
    ):
        raise DataError(
            f"{subject.model} has no chat template.",
            advice="Ask it without --chat, with plain prompts.",
        )
    with progress_bar("generating", len(turns)) as advance:
        texts = generate(
            loaded, turns, how, batch_size=asking.batch_size, seed=asking.seed, progress=advance
        )
    answers = [
        {"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)
    ]
    if asking.output:
        part = Path(asking.output).with_name(f".{Path(asking.output).name}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
        part.replace(asking.output)
    return {
        "answers": answers,
        "output": asking.output,
        "model": subject.model,
        "adapter": subject.adapter,
    }


def _prompts(source: Source) -> list[Any]:
    """Return what the rows ask: a prompt, a text to go on with, or the turns before the last
    answer; each once.
    """
    rows = rows_of(source)
    if rows.kind not in ("completion", "messages", "text"):
        raise DataError(
            f"The rows of {source.data} hold no prompts.",
            advice="Name the column: --columns prompt=…",
        )
    if rows.kind != "messages":
        return list(
            dict.fromkeys(
                row["prompt" if rows.kind == "completion" else "text"] for row in rows.rows
            )
        )
    return [
        row["messages"][: max(i for i, t in enumerate(row["messages"]) if t["role"] == "assistant")]
        for row in rows.rows
    ]


def show(result: dict[str, Any]) -> None:
    if result["output"]:
        print(f"{len(result['answers'])} answers are in {result['output']}", file=sys.stderr)
        return
    for i, answer in enumerate(result["answers"]):
        if len(result["answers"]) > 1:
            print(("" if i == 0 else "\n") + f"> {answer['prompt']}")
        print(answer["text"])
