"""`lorakit generate`."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.cli import flags
from lorakit.cli.request import DataRequest, ModelRequest, require
from lorakit.errors import NOT_STARTED, DataError, OutputError, SpecError
from lorakit.evaluate.decoding import Decoding
from lorakit.files import write_json_lines
from lorakit.spec import option

if TYPE_CHECKING:
    from lorakit.cli.results import GenerateResult
    from lorakit.evaluate.generate import Prompt
    from lorakit.models.load import Loaded


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """The prompts, and the file for the answers."""

    prompt: tuple[str, ...] = option((), "one or more prompts", several=True, metavar="TEXT")
    output: str | None = option(
        None, "write the answers to this JSONL file instead of the screen", type=str
    )
    chat: bool = option(
        False, "treat each prompt as a user's turn, with the chat template of the model"
    )
    batch_size: int = option(16, "prompts in one batch", least=1)
    seed: int = option(0, "seed of sampling", least=0)


def add_flags(parser: argparse.ArgumentParser) -> None:
    flags.add_fields(parser, ModelRequest, "the model")
    flags.add_fields(parser, GenerateRequest, "the prompts")
    flags.add_fields(
        parser, DataRequest, "prompts from a file, instead of --prompt", optional=("data",)
    )
    flags.add_fields(parser, Decoding, "generation")


def run(args: argparse.Namespace) -> "GenerateResult":
    model, prompts, data, decoding = flags.read_settings(
        args, ModelRequest, GenerateRequest, DataRequest, Decoding
    )
    require(model, ModelRequest)
    request, source = GenerateRequest(**prompts), DataRequest(**data)
    how = Decoding(**decoding)
    if bool(request.prompt) == bool(source.data):
        raise SpecError("Give either --prompt or --data.", advice=NOT_STARTED)
    if request.output and Path(request.output).exists():
        raise OutputError(
            f"{request.output} exists already.", advice="Name a new file. Nothing was written."
        )
    return _generate(ModelRequest(**model), request, source, how)


def _generate(
    model: ModelRequest, request: GenerateRequest, data: DataRequest, decoding: Decoding
) -> "GenerateResult":
    from lorakit.evaluate.generate import generate
    from lorakit.train.log import progress_bar

    adapter = model.load_adapter()
    prompts = list(request.prompt) if request.prompt else _read_prompts(data)
    loaded = model.open(adapter, "causal-lm")
    turns = _as_turns(prompts, loaded, model.model, chat=request.chat)
    with progress_bar("generating", len(turns)) as advance:
        texts = generate(
            loaded,
            turns,
            decoding,
            batch_size=request.batch_size,
            seed=request.seed,
            progress=advance,
        )
    answers = []
    for prompt, text in zip(prompts, texts, strict=True):
        answers.append({"prompt": prompt, "text": text})
    if request.output:
        path = Path(request.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_lines(path, answers)
    return {
        "answers": answers,
        "output": request.output,
        "model": model.model,
        "adapter": model.adapter,
    }


def _as_turns(
    prompts: Sequence["Prompt"], loaded: "Loaded", name: str, *, chat: bool
) -> list["Prompt"]:
    """Return the prompts as `generate` takes them; with `chat`, texts become a user's turn."""
    turns: list[Prompt] = []
    for prompt in prompts:
        is_text = isinstance(prompt, str)
        turns.append([{"role": "user", "content": prompt}] if chat and is_text else prompt)
    needs_template = any(isinstance(turn, list) for turn in turns)
    if needs_template and not getattr(loaded.tokenizer, "chat_template", None):
        raise DataError(
            f"{name} has no chat template.", advice="Use plain prompts, without --chat."
        )
    return turns


def _read_prompts(data: DataRequest) -> list["Prompt"]:
    """Return each different prompt or text, or the turns before the last answer of each row."""
    rows = data.read()
    if rows.kind not in ("completion", "messages", "text"):
        raise DataError(
            f"The rows of {data.data} hold no prompts.",
            advice="Name the column: --columns prompt=…",
        )
    if rows.kind == "messages":
        return [_before_last_answer(row["messages"]) for row in rows.rows]
    key = "prompt" if rows.kind == "completion" else "text"
    return list(dict.fromkeys(row[key] for row in rows.rows))


def _before_last_answer(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    last = 0
    for index, turn in enumerate(messages):
        if turn["role"] == "assistant":
            last = index
    return messages[:last]


def show(result: "GenerateResult") -> None:
    answers = result["answers"]
    if result["output"]:
        print(f"{len(answers)} answers are in {result['output']}", file=sys.stderr)
        return
    for index, answer in enumerate(answers):
        if len(answers) > 1:
            space = "\n" if index else ""
            print(f"{space}> {answer['prompt']}")
        print(answer["text"])
