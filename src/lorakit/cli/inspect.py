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
        None,
        "the base: adds each change's norm relative to its matrix, and checks that it fits",
        type=str,
    )
    targets: bool = option(
        False, "list what of a model can be named as a target (SUBJECT is a model)"
    )
    beside: str | None = option(
        None, "a second adapter: shows how the two lie to each other", type=str, flag="--with"
    )
    attention: str | None = option(
        None,
        "a text: shows where the base and the adapted model look in it, and how far apart (with --model)",
        type=str,
    )
    plot: str | None = option(
        None,
        "a file for one picture (.png, .svg, .pdf): norm, effective rank, spectrum, similarity; with --attention "
        "the maps",
        type=str,
    )
    intruders: bool = option(
        False, "count intruder dimensions (with --model; a dense SVD of every matrix)"
    )
    any_base: bool = option(False, "take an adapter that was trained on other base weights")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "subject",
        metavar="SUBJECT",
        help="an adapter folder; with --targets a model: folder, hub id or builtin:minilm",
    )
    flags.add_fields(parser, Inspecting, "what is shown")


def main(args: argparse.Namespace) -> dict[str, Any]:
    looking = Inspecting(**flags.values(args, Inspecting)[0])
    if looking.targets and (
        looking.model or looking.beside or looking.plot or looking.intruders or looking.attention
    ):
        raise SpecError(
            "--targets lists a model's layers: name the model alone, without --model and what is of an adapter."
        )
    return _targets(args.subject) if looking.targets else _adapter(args.subject, looking)


def _targets(name: str) -> dict[str, Any]:
    import torch
    import transformers

    from lorakit.inject.places import find_places
    from lorakit.inject.targets import find_role
    from lorakit.models.load import load_config, quiet

    config = load_config(name)
    kinds = {
        architecture: getattr(transformers, architecture, None)
        for architecture in config.architectures or ()
    }
    cls = next((c for c in kinds.values() if c is not None), None)
    # On the meta device: shapes alone, no weights are read.
    with torch.device("meta"), quiet():
        model = cls(config) if cls else transformers.AutoModel.from_config(config)
    found = [
        {"name": n, "kind": p.site.kind, "shape": list(p.shape), "role": find_role(n)}
        for n, p in find_places(model).items()
    ]
    return {"targets": found, "model": name, "class": type(model).__name__}


def _adapter(folder: str, looking: Inspecting) -> dict[str, Any]:
    from lorakit.adapter import Adapter
    from lorakit.analysis import report

    if looking.intruders and not looking.model:
        raise SpecError("--intruders compares with the base's own directions: name it (--model).")
    if looking.attention is not None and not looking.model:
        raise SpecError("--attention compares with the base's own maps: name it (--model).")
    if looking.plot:
        from lorakit import plots

        plots.check_path(looking.plot)
    adapter = Adapter.load(folder)
    second = Adapter.load(looking.beside) if looking.beside else None
    loaded = _loaded(looking, adapter) if looking.model else None
    base = loaded.model if loaded else None
    modules = report.describe_modules(adapter, base, intruders=looking.intruders)
    told: dict[str, Any] = {
        "modules": modules,
        **report.summarise_modules(modules),
        "trainable_parameters": adapter.parameters_count,
        "spec": adapter.spec.to_dict(),
        "whole": {path: list(t.shape) for path, t in adapter.full_parameters.items()},
        "provenance": adapter.provenance,
        "content_hash": adapter.content_hash(),
        "adapter": folder,
    }
    if second is not None:
        told |= {"with": looking.beside, "pairs": report.compare_adapters(adapter, second, base)}
    maps = (
        _attention(loaded, looking.attention) if loaded and looking.attention is not None else None
    )
    if maps:
        told["attention"] = {"text": looking.attention, **maps.to_dict()}
    if looking.plot:
        from lorakit import plots

        title = f"{folder}, and {looking.beside}" if looking.beside else folder
        drawn = (
            plots.draw_attention(maps, title=title)
            if maps
            else plots.draw_adapter(modules, told.get("pairs", ()), title=title)
        )
        told["plot"] = str(plots.save_figure(drawn, looking.plot))
    return told


def _loaded(looking: Inspecting, adapter: Any) -> Any:
    from lorakit.models.open import open_model, resolve_task

    return open_model(
        looking.model or "", adapter, resolve_task(adapter), any_base=looking.any_base
    )


def _attention(loaded: Any, text: str) -> Any:
    from lorakit.analysis.attention import compare_attention

    return compare_attention(loaded.model, loaded.tokenizer, text)


def show(result: dict[str, Any]) -> None:
    from lorakit.cli import show as shown

    if "targets" in result:
        rows = [
            [t["name"], t["role"] or "", t["kind"], f"{t['shape'][1]} -> {t['shape'][0]}"]
            for t in result["targets"]
        ]
        shown.table(
            ["name", "role", "kind", "in -> out"],
            rows,
            title=f"{result['class']}: {len(rows)} layers can be adapted",
        )
        return
    _modules(result)
    if result.get("pairs"):
        _pairs(result)
    if "attention" in result:
        _maps(result["attention"])
    if result.get("plot"):
        print(f"picture: {result['plot']}")
    if result["modules"] and not any(m["norm"] for m in result["modules"]):
        print("This adapter was never trained: every B is zero, so it changes nothing.")
    if result["whole"]:
        print(
            "Trained whole: "
            + ", ".join(f"{path} {tuple(shape)}" for path, shape in result["whole"].items())
        )
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


def _maps(found: dict[str, Any]) -> None:
    from lorakit.cli import show as shown

    rows = [
        [layer, sum(by) / len(by), by.index(max(by)), max(by)]
        for layer, by in enumerate(found["by_head"])
    ]
    shown.table(
        ["layer", "mean of its heads", "head that moved most", "by"],
        rows,
        title="where it looks, without and with the adapter: "
        f"{found['distance']:.3f} bits apart (0 alike, 1 disjoint)",
    )
    layer, head = found["most"]
    print(f"Layer {layer}, head {head}, where it moved most:")
    for row in found["moves"]:
        print(
            f"  {row['token']!r} looks at {row['at']!r}: {row['before']:.2f} -> {row['after']:.2f}"
        )


def _modules(result: dict[str, Any]) -> None:
    from lorakit.cli import show as shown

    relative, counted = (
        any(key in m for m in result["modules"]) for key in ("relative_norm", "intruders")
    )
    shared = _shared_start([m["name"] for m in result["modules"]])
    rows = []
    for m in result["modules"]:
        values = m["singular_values"]
        stacked = bool(values) and isinstance(values[0], list)
        top = (
            f"{len(values)} matrices"
            if stacked
            else " ".join(f"{value:.3g}" for value in values[:4])
        )
        share = [f"{100 * m['relative_norm']:.2f} %", _factor(m)] if relative else []
        share += [m.get("intruders")] if counted else []
        note = "dead" if m["dead"] else "B A alone" if m.get("partial") else ""
        shape = f"{m['shape'][1]} -> {m['shape'][0]}"
        rows.append(
            [
                m["name"].removeprefix(shared),
                shape,
                f"{m['scale']:g}",
                shown.number(m["norm"]),
                *share,
                f"{m['effective_rank']:.1f} of {m['rank']}",
                f"{m['stable_rank']:.1f}",
                note,
                top,
            ]
        )
    title = (
        f"{result['adapter']}: {len(rows)} modules, {result['trainable_parameters']:,} parameters"
    )
    if shared:
        title += f"; names begin with {shared}"
    more = ["of W", "amplifies"] if relative else []
    more += ["intruders"] if counted else []
    shown.table(
        [
            "module",
            "in -> out",
            "scale",
            "norm",
            *more,
            "effective rank",
            "stable",
            "",
            "singular values",
        ],
        rows,
        title=title,
    )
    if rows:
        print(
            f"norm {shown.number(result['norm'])}, effective rank {result['effective_rank']:.1f} on average, "
            f"90 % of the energy in {result['rank_90']:.1f} directions, "
            f"{result['dead_modules']} of {len(rows)} modules dead"
        )
    if any(m.get("partial") for m in result["modules"]):
        print(
            "What DoRA adds depends on the base: without --model its B A is shown, not the whole change."
        )


def _factor(module: dict[str, Any]) -> str:
    found = module.get("amplification")
    return f"{found['factor']:.1f}" if found else ""


def _pairs(result: dict[str, Any]) -> None:
    from lorakit.cli import show as shown

    shared = _shared_start([m["name"] for m in result["pairs"]])
    rows = [
        [
            p["name"].removeprefix(shared),
            f"{p['similarity'][0][0]:.3f}" if "similarity" in p else "",
            f"{p['similarity'][-1][-1]:.3f}" if "similarity" in p else "",
            f"{p['random']:.3f}" if "random" in p else "",
            f"{p['angles'][0]:.0f}°" if "angles" in p else "",
            f"{p['cosine']:+.3f}",
            f"{100 * p['sign_conflict']:.1f} %",
        ]
        for p in result["pairs"]
    ]
    heads = ["module", "phi(1, 1)", "phi(all)", "random", "least angle", "cosine", "opposite signs"]
    shown.table(heads, rows, title=f"beside {result['with']}: {len(rows)} modules in both")


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
