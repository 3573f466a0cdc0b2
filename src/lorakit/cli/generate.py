"""`lorakit generate`."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.cli import flags
from lorakit.cli.request import DataRequest, ModelRequest, require
from lorakit.errors import NOT_STARTED, DataError, SpecError
from lorakit.evaluate.decoding import Decoding
from lorakit.files import check_new_file, write_json_lines
from lorakit.spec import option

if TYPE_CHECKING:
    from lorakit.adapter import Adapter
    from lorakit.cli.results import GenerateResult
    from lorakit.data.prompts import Prompt
    from lorakit.data.rows import Rows
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
    if model.get("template") and request.prompt and not request.chat:
        raise SpecError(
            "template: plain prompts are used as they are.",
            advice=f"Add --chat, or leave --template out. {NOT_STARTED}",
        )
    if request.output:
        check_new_file(Path(request.output))
    return _generate(ModelRequest(**model), request, source, how)


def _generate(
    model: ModelRequest, request: GenerateRequest, data: DataRequest, decoding: Decoding
) -> "GenerateResult":
    from lorakit.data.prompts import show_prompt
    from lorakit.data.template_files import check_use
    from lorakit.evaluate.generate import generate
    from lorakit.train.log import progress_bar

    rows = None if request.prompt else _read_rows(data)
    if rows is not None and not request.chat:
        check_use(rows, model.template)
    adapter = model.load_adapter()
    task = _find_task(model, adapter)
    loaded = model.open(adapter, task)
    prompts = _list_prompts(request, rows, loaded)
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
        answers.append({"prompt": show_prompt(prompt), "text": text})
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


def _find_task(model: ModelRequest, adapter: "Adapter | None") -> str:
    """Return seq2seq for an encoder-decoder, else causal-lm."""
    from lorakit.tasks.rows import resolve_task

    trusted = model.trust_remote_code
    task = resolve_task(adapter, model.model, trust_remote_code=trusted)
    return task if task == "seq2seq" else "causal-lm"


def _as_turns(
    prompts: Sequence["Prompt"], loaded: "Loaded", name: str, *, chat: bool
) -> list["Prompt"]:
    """Return the prompts as `generate` takes them; with `chat`, texts become a user's turn."""
    from lorakit.data.templates import has_template

    turns: list[Prompt] = []
    for prompt in prompts:
        is_text = isinstance(prompt, str)
        turns.append([{"role": "user", "content": prompt}] if chat and is_text else prompt)
    needs_template = not all(isinstance(turn, str) for turn in turns)
    if needs_template and not has_template(loaded.tokenizer):
        raise DataError(
            f"{name} has no chat template.",
            advice="Use plain prompts, without --chat, or name a template: --template chatml, or "
            "a file.",
        )
    return turns


def _read_rows(data: DataRequest) -> "Rows":
    """Return the rows, which have to hold prompts; nothing is loaded yet.

    Raises:
        DataError: they hold none.
    """
    from lorakit.data.prompts import check_prompts

    rows = data.read()
    check_prompts(rows)
    return rows


def _list_prompts(
    request: GenerateRequest, rows: "Rows | None", loaded: "Loaded"
) -> list["Prompt"]:
    """Return the prompts of the command line, or the different ones of the rows."""
    from lorakit.data.prompts import list_prompts, unique_prompts

    if rows is None:
        return list(request.prompt)
    return unique_prompts(list_prompts(rows, loaded.tokenizer))


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
