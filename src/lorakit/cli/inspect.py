"""`lorakit inspect`."""

import argparse
from dataclasses import dataclass
from typing import Any

from lorakit.cli import flags
from lorakit.errors import SpecError
from lorakit.spec import option


@dataclass(frozen=True, kw_only=True)
class Inspecting:
    """What is looked at."""

    model: str | None = option(
        None, "the base: adds each change's norm relative to its matrix, and checks that it fits", type=str
    )
    targets: bool = option(False, "list what of a model can be named as a target (SUBJECT is a model)")
    any_base: bool = option(False, "take an adapter that was trained on other base weights")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "subject", metavar="SUBJECT", help="an adapter folder; with --targets a model: folder, hub id or builtin:minilm"
    )
    flags.add_fields(parser, Inspecting, "what is shown")


def main(args: argparse.Namespace) -> dict[str, Any]:
    looking = Inspecting(**flags.values(args, Inspecting)[0])
    if looking.targets and looking.model:
        raise SpecError("--targets lists a model's layers: name the model alone, without --model.")
    return _targets(args.subject) if looking.targets else _adapter(args.subject, looking)


def _targets(name: str) -> dict[str, Any]:
    import torch
    import transformers

    from lorakit.errors import ModelError
    from lorakit.models import locate, quiet
    from lorakit.targets import places, role

    where, _ = locate(name)
    try:
        config = transformers.AutoConfig.from_pretrained(where)
    except (OSError, ValueError) as error:
        raise ModelError(f"{name} cannot be read: {str(error).splitlines()[0]}") from error
    kinds = {architecture: getattr(transformers, architecture, None) for architecture in config.architectures or ()}
    cls = next((c for c in kinds.values() if c is not None), None)
    # On the meta device: shapes alone, no weights are read.
    with torch.device("meta"), quiet():
        model = cls(config) if cls else transformers.AutoModel.from_config(config)
    found = [{"name": n, "kind": p.site.kind, "shape": list(p.shape), "role": role(n)} for n, p in places(model).items()]
    return {"targets": found, "model": name, "class": type(model).__name__}


def _adapter(folder: str, looking: Inspecting) -> dict[str, Any]:
    from lorakit.adapter import Adapter
    from lorakit.spectra import effective_rank, singular_values

    adapter = Adapter.load(folder)
    base = _base(looking, adapter) if looking.model else None
    modules = []
    for name, delta in adapter.deltas.items():
        values = singular_values(delta.A, delta.B, delta.scale)
        norm = float(values.norm())
        told = {"name": name, "kind": delta.kind, "shape": list(delta.shape), "rank": delta.rank, "alpha": delta.alpha,
                "scale": delta.scale, "norm": norm, "effective_rank": effective_rank(values),
                "singular_values": values.tolist()}  # fmt: skip
        if base is not None:
            told["relative_norm"] = norm / max(float(base[name].site.read(base[name].layer).float().norm()), 1e-30)
        modules.append(told)
    return {
        "modules": modules, "trainable_parameters": adapter.parameters_count, "spec": adapter.spec.to_dict(),
        "whole": {path: list(t.shape) for path, t in adapter.whole.items()}, "provenance": adapter.provenance,
        "content_hash": adapter.content_hash(), "adapter": folder,
    }  # fmt: skip


def _base(looking: Inspecting, adapter: Any) -> Any:
    from lorakit.evaluate.subject import open_subject, told_task
    from lorakit.targets import places

    loaded = open_subject(looking.model or "", adapter, told_task(adapter), any_base=looking.any_base)
    return places(loaded.model)


def show(result: dict[str, Any]) -> None:
    from lorakit.cli import show as shown

    if "targets" in result:
        rows = [[t["name"], t["role"] or "", t["kind"], f"{t['shape'][1]} -> {t['shape'][0]}"] for t in result["targets"]]
        shown.table(["name", "role", "kind", "in -> out"], rows, title=f"{result['class']}: {len(rows)} layers can be adapted")
        return
    relative = any("relative_norm" in m for m in result["modules"])
    shared = _shared_start([m["name"] for m in result["modules"]])
    rows = []
    for m in result["modules"]:
        top = " ".join(f"{value:.3g}" for value in m["singular_values"][:4])
        share = [f"{100 * m['relative_norm']:.2f} %"] if relative else []
        effective = f"{m['effective_rank']:.1f} of {m['rank']}"
        shape = f"{m['shape'][1]} -> {m['shape'][0]}"
        norm = shown.number(m["norm"])
        rows.append([m["name"].removeprefix(shared), shape, f"{m['scale']:g}", norm, *share, effective, top])
    title = f"{result['adapter']}: {len(rows)} modules, {result['trainable_parameters']:,} parameters"
    if shared:
        title += f"; names begin with {shared}"
    headings = ["module", "in -> out", "scale", "norm", *(["of W"] if relative else []), "effective rank", "singular values"]
    shown.table(headings, rows, title=title)
    if result["modules"] and not any(m["norm"] for m in result["modules"]):
        print("This adapter was never trained: every B is zero, so it changes nothing.")
    if result["whole"]:
        print("Trained whole: " + ", ".join(f"{path} {tuple(shape)}" for path, shape in result["whole"].items()))
    known = result["provenance"]
    told = {
        "base_model": "base",
        "base_fingerprint": "fingerprint of the base",
        "data_hash": "hash of the data",
        "seed": "seed",
        "steps": "steps",
        "labels": "labels",
        "after": "held-out data, after",
    }
    for key, text in told.items():
        if known.get(key) is not None:
            print(f"{text}: {known[key]}")


def _shared_start(names: list[str]) -> str:
    """Return what all names begin with, up to a dot.

    >>> _shared_start(["model.layers.0.q", "model.layers.1.q"])
    'model.layers.'
    """
    parts = [name.split(".")[:-1] for name in names]
    same = 0
    while parts and all(len(p) > same for p in parts) and len({p[same] for p in parts}) == 1:
        same += 1
    return "".join(f"{part}." for part in parts[0][:same]) if len(names) > 1 else ""
