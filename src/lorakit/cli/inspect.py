"""`lorakit inspect`."""

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorakit.cli import flags
from lorakit.cli.inspect_tables import show_adapter, show_targets
from lorakit.cli.request import ModelRequest
from lorakit.errors import SpecError
from lorakit.spec import option, option_like
from lorakit.text import print_message
from lorakit.train.config import TrainSpec

if TYPE_CHECKING:
    from torch import nn

    from lorakit.adapter import Adapter
    from lorakit.analysis.attention import AttentionComparison
    from lorakit.cli.results import InspectResult, TargetsResult
    from lorakit.models.load import Loaded


@dataclass(frozen=True, kw_only=True)
class InspectRequest:
    """The parts of an adapter or model to show."""

    model: str | None = option(
        None,
        "base model of the adapter; adds the norm of each change relative to its matrix",
        type=str,
    )
    trust_remote_code: bool = option_like(TrainSpec, "trust_remote_code")
    targets: bool = option(
        False, "list the layers of a model that can be adapted; SUBJECT is a model"
    )
    beside: str | None = option(
        None,
        "folder of a second adapter, which is compared module by module",
        type=str,
        flag="--with",
    )
    attention: str | None = option(
        None,
        "text on which the attention of base and adapted model is compared; needs --model",
        type=str,
    )
    plot: str | None = option(
        None,
        "write one picture to this file (.png, .svg, .pdf): norms, ranks and spectra, or the "
        "attention",
        type=str,
    )
    intruders: bool = option(
        False,
        "count intruder dimensions: main directions of the adapted matrix that resemble none of "
        "the base's; needs --model, and a dense SVD of every matrix",
    )
    any_base: bool = option_like(ModelRequest, "any_base")


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "subject",
        metavar="SUBJECT",
        help="folder of an adapter; with --targets a model: a folder, a hub id, or builtin:minilm",
    )
    flags.add_fields(parser, InspectRequest, "the analysis")


def run(args: argparse.Namespace) -> "InspectResult | TargetsResult":
    (values,) = flags.read_settings(args, InspectRequest)
    request = InspectRequest(**values)
    if not request.targets:
        _check(request)
        return _inspect_adapter(args.subject, request)
    of_adapters = (request.model, request.beside, request.plot, request.attention)
    if any(of_adapters) or request.intruders:
        raise SpecError(
            "--targets lists a model's layers: give only the model, without flags for adapters."
        )
    return _list_targets(args.subject, trust_remote_code=request.trust_remote_code)


def _check(request: InspectRequest) -> None:
    if request.intruders and not request.model:
        raise SpecError("--intruders compares with the base's own directions: name it (--model).")
    if request.attention is not None and not request.model:
        raise SpecError("--attention compares with the base's own maps: name it (--model).")
    if request.plot:
        from lorakit import plots

        plots.check_path(request.plot)


def _list_targets(name: str, *, trust_remote_code: bool) -> "TargetsResult":
    from lorakit.inject.places import find_places
    from lorakit.inject.targets import find_roles

    model = _build_on_meta(name, trust_remote_code=trust_remote_code)
    targets = []
    places = find_places(model)
    roles = find_roles(model, places)
    for place_name, place in places.items():
        target = {
            "name": place_name,
            "kind": place.site.kind,
            "shape": list(place.shape),
            "role": roles[place_name],
        }
        targets.append(target)
    return {"targets": targets, "model": name, "class": type(model).__name__}


def _build_on_meta(name: str, *, trust_remote_code: bool) -> "nn.Module":
    """Return a model of the class in its config, without weights."""
    import torch
    import transformers

    from lorakit.models.read import load_config, quiet

    config = load_config(name, trust_remote_code=trust_remote_code)
    classes = [getattr(transformers, one, None) for one in config.architectures or ()]
    known = [one for one in classes if one is not None]
    with torch.device("meta"), quiet():
        if known:
            return known[0](config)
        return transformers.AutoModel.from_config(config, trust_remote_code=trust_remote_code)


def _inspect_adapter(folder: str, request: InspectRequest) -> "InspectResult":
    from lorakit.adapter import Adapter
    from lorakit.analysis import report

    adapter = Adapter.load(folder)
    second = Adapter.load(request.beside) if request.beside else None
    loaded = _load(request, adapter) if request.model else None
    base = loaded.model if loaded else None
    modules = report.describe_modules(adapter, base, intruders=request.intruders)
    shapes = {path: list(tensor.shape) for path, tensor in adapter.full_parameters.items()}
    result: InspectResult = {
        "modules": modules,
        **report.summarise_modules(modules),
        "trainable_parameters": adapter.parameters_count,
        "spec": adapter.spec.to_dict(),
        "whole": shapes,
        "provenance": adapter.provenance,
        "content_hash": adapter.content_hash(),
        "adapter": folder,
    }
    if second is not None and request.beside:
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
    from lorakit.models.open import open_model
    from lorakit.tasks.rows import resolve_task

    task = resolve_task(adapter, request.model or "", trust_remote_code=request.trust_remote_code)
    return open_model(
        request.model or "",
        adapter,
        task,
        any_base=request.any_base,
        trust_remote_code=request.trust_remote_code,
        say=print_message,
    )


def _compare_attention(loaded: "Loaded", text: str) -> "AttentionComparison":
    from lorakit.analysis.attention import compare_attention

    return compare_attention(loaded.model, loaded.tokenizer, text)


def _draw(result: "InspectResult", maps: "AttentionComparison | None", path: str) -> str:
    from lorakit import plots

    title = result["adapter"]
    if "with" in result:
        title += f", and {result['with']}"
    if maps is not None:
        figure = plots.draw_attention(maps, title=title)
    else:
        figure = plots.draw_adapter(result["modules"], result.get("pairs", ()), title=title)
    return str(plots.save_figure(figure, path))


def show(result: "InspectResult | TargetsResult") -> None:
    if "targets" in result:
        show_targets(result)
    else:
        show_adapter(result)
