"""`lorakit inspect`."""

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorakit.cli import flags
from lorakit.cli.inspect_tables import show_adapter, show_targets
from lorakit.cli.request import Result
from lorakit.errors import SpecError
from lorakit.spec import option

if TYPE_CHECKING:
    from torch import nn

    from lorakit.adapter import Adapter
    from lorakit.analysis.attention import AttentionComparison
    from lorakit.models.load import Loaded


@dataclass(frozen=True, kw_only=True)
class InspectRequest:
    """The parts of an adapter or model to show."""

    model: str | None = option(
        None,
        "the base: adds each change's norm relative to its matrix, and checks that it fits",
        type=str,
    )
    targets: bool = option(
        False, "list what can be named as a target in a model (SUBJECT is a model)"
    )
    beside: str | None = option(
        None, "a second adapter: compares the two module by module", type=str, flag="--with"
    )
    attention: str | None = option(
        None,
        "a text: compares the attention maps of base and adapted model on it (with --model)",
        type=str,
    )
    plot: str | None = option(
        None,
        "a file for one picture (.png, .svg, .pdf): norm, effective rank, spectrum, similarity; "
        "with --attention the maps",
        type=str,
    )
    intruders: bool = option(
        False, "count intruder dimensions (with --model; a dense SVD of every matrix)"
    )
    any_base: bool = option(False, "accept an adapter that was trained on other base weights")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "subject",
        metavar="SUBJECT",
        help="an adapter folder; with --targets a model: folder, hub id or builtin:minilm",
    )
    flags.add_fields(parser, InspectRequest, "what is shown")


def main(args: argparse.Namespace) -> Result:
    (values,) = flags.values(args, InspectRequest)
    request = InspectRequest(**values)
    if not request.targets:
        _check(request)
        return _inspect_adapter(args.subject, request)
    of_adapters = (request.model, request.beside, request.plot, request.attention)
    if any(of_adapters) or request.intruders:
        raise SpecError(
            "--targets lists a model's layers: give only the model, without flags for adapters."
        )
    return _list_targets(args.subject)


def _check(request: InspectRequest) -> None:
    if request.intruders and not request.model:
        raise SpecError("--intruders compares with the base's own directions: name it (--model).")
    if request.attention is not None and not request.model:
        raise SpecError("--attention compares with the base's own maps: name it (--model).")
    if request.plot:
        from lorakit import plots

        plots.check_path(request.plot)


def _list_targets(name: str) -> Result:
    from lorakit.inject.places import find_places
    from lorakit.inject.targets import find_role

    model = _build_on_meta(name)
    targets = []
    for place_name, place in find_places(model).items():
        target = {
            "name": place_name,
            "kind": place.site.kind,
            "shape": list(place.shape),
            "role": find_role(place_name),
        }
        targets.append(target)
    return {"targets": targets, "model": name, "class": type(model).__name__}


def _build_on_meta(name: str) -> "nn.Module":
    """Return a model of the class in its config, without weights."""
    import torch
    import transformers

    from lorakit.models.load import load_config, quiet

    config = load_config(name)
    classes = [getattr(transformers, one, None) for one in config.architectures or ()]
    known = [one for one in classes if one is not None]
    with torch.device("meta"), quiet():
        return known[0](config) if known else transformers.AutoModel.from_config(config)


def _inspect_adapter(folder: str, request: InspectRequest) -> Result:
    from lorakit.adapter import Adapter
    from lorakit.analysis import report

    adapter = Adapter.load(folder)
    second = Adapter.load(request.beside) if request.beside else None
    loaded = _load(request, adapter) if request.model else None
    base = loaded.model if loaded else None
    modules = report.describe_modules(adapter, base, intruders=request.intruders)
    shapes = {path: list(tensor.shape) for path, tensor in adapter.full_parameters.items()}
    result: Result = {
        "modules": modules,
        **report.summarise_modules(modules),
        "trainable_parameters": adapter.parameters_count,
        "spec": adapter.spec.to_dict(),
        "whole": shapes,
        "provenance": adapter.provenance,
        "content_hash": adapter.content_hash(),
        "adapter": folder,
    }
    if second is not None:
        result["with"] = request.beside
        result["pairs"] = report.compare_adapters(adapter, second, base)
    maps = None
    if loaded and request.attention is not None:
        maps = _compare_attention(loaded, request.attention)
        result["attention"] = {"text": request.attention, **maps.to_dict()}
    if request.plot:
        result["plot"] = _draw(result, maps, request.plot)
    return result


def _load(request: InspectRequest, adapter: "Adapter") -> "Loaded":
    from lorakit.models.open import open_model, resolve_task

    task = resolve_task(adapter)
    return open_model(request.model or "", adapter, task, any_base=request.any_base)


def _compare_attention(loaded: "Loaded", text: str) -> "AttentionComparison":
    from lorakit.analysis.attention import compare_attention

    return compare_attention(loaded.model, loaded.tokenizer, text)


def _draw(result: Result, maps: "AttentionComparison | None", path: str) -> str:
    from lorakit import plots

    title = result["adapter"]
    if "with" in result:
        title += f", and {result['with']}"
    if maps is not None:
        figure = plots.draw_attention(maps, title=title)
    else:
        figure = plots.draw_adapter(result["modules"], result.get("pairs", ()), title=title)
    return str(plots.save_figure(figure, path))


def show(result: Result) -> None:
    if "targets" in result:
        show_targets(result)
    else:
        show_adapter(result)
