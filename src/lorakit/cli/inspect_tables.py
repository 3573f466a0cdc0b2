"""The tables of `lorakit inspect`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorakit.cli.tables import format_number, print_table

if TYPE_CHECKING:
    from lorakit.analysis.report import ModuleReport, PairReport
    from lorakit.cli.results import AttentionResult, InspectResult, TargetsResult

PROVENANCE = {
    "base_model": "base",
    "base_fingerprint": "fingerprint of the base",
    "data_hash": "hash of the data",
    "seed": "seed",
    "steps": "steps",
    "labels": "labels",
    "after": "held-out data, after",
}
SHOWN_VALUES = 4  # singular values of a module


def show_targets(result: "TargetsResult") -> None:
    """Print what of a model can be named as a target."""
    rows = []
    for target in result["targets"]:
        shape = _shape(target["shape"])
        rows.append([target["name"], target["role"] or "", target["kind"], shape])
    title = f"{result['class']}: {len(rows)} layers can be adapted"
    print_table(["name", "role", "kind", "in -> out"], rows, title=title)


def show_adapter(result: "InspectResult") -> None:
    """Print an adapter: its modules, pairs, maps, and where it comes from."""
    _show_modules(result)
    pairs = result.get("pairs")
    if pairs:
        _show_pairs(pairs, result.get("with", ""))
    if "attention" in result:
        _show_maps(result["attention"])
    picture = result.get("plot")
    if picture:
        print(f"picture: {picture}")
    if result["modules"] and not any(module["norm"] for module in result["modules"]):
        print("This adapter was never trained: every B is zero, so it changes nothing.")
    if result["whole"]:
        shapes = [f"{path} {tuple(shape)}" for path, shape in result["whole"].items()]
        print(f"Trained in full: {', '.join(shapes)}")
    for key, text in PROVENANCE.items():
        value = result["provenance"].get(key)
        if value is not None:
            print(f"{text}: {value}")


def _show_modules(result: "InspectResult") -> None:
    modules: Sequence[ModuleReport] = result["modules"]
    relative = any("relative_norm" in module for module in modules)
    counted = any("intruders" in module for module in modules)
    shared = _shared_start([module["name"] for module in modules])
    rows = []
    for module in modules:
        row: list[object] = [
            module["name"].removeprefix(shared),
            _shape(module["shape"]),
            f"{module['scale']:g}",
            format_number(module["norm"]),
        ]
        if relative:
            row += [f"{100 * module.get('relative_norm', 0.0):.2f} %", _amplification(module)]
        if counted:
            row.append(module.get("intruders"))
        row += [
            f"{module['effective_rank']:.1f} of {module['rank']}",
            f"{module['stable_rank']:.1f}",
            _note(module),
            _values(module),
        ]
        rows.append(row)
    heads = ["module", "in -> out", "scale", "norm"]
    heads += ["of W", "amplifies"] if relative else []
    heads += ["intruders"] if counted else []
    heads += ["effective rank", "stable", "", "singular values"]
    print_table(heads, rows, title=_title(result, shared))
    if rows:
        print(
            f"norm {format_number(result['norm'])}, "
            f"effective rank {result['effective_rank']:.1f} on average, "
            f"90 % of the energy in {result['rank_90']:.1f} directions, "
            f"{result['dead_modules']} of {len(rows)} modules dead"
        )
    if any(module.get("partial") for module in modules):
        print("DoRA's change depends on the base: without --model only its B A is shown.")


def _title(result: "InspectResult", shared: str) -> str:
    count = len(result["modules"])
    title = f"{result['adapter']}: {count} modules, {result['trainable_parameters']:,} parameters"
    return f"{title}; names begin with {shared}" if shared else title


def _shape(shape: Sequence[int]) -> str:
    out, inputs = shape[0], shape[1]
    return f"{inputs} -> {out}"


def _amplification(module: "ModuleReport") -> str:
    found = module.get("amplification")
    return f"{found['factor']:.1f}" if found else ""


def _note(module: "ModuleReport") -> str:
    if module["dead"]:
        return "dead"
    return "B A alone" if module.get("partial") else ""


def _values(module: "ModuleReport") -> str:
    values = module["singular_values"]
    if values and isinstance(values[0], list):
        return f"{len(values)} matrices"
    return " ".join(f"{value:.3g}" for value in values[:SHOWN_VALUES])


def _show_pairs(pairs: Sequence["PairReport"], other: str) -> None:
    shared = _shared_start([pair["name"] for pair in pairs])
    rows = []
    for pair in pairs:
        similarity = pair.get("similarity")
        row = [
            pair["name"].removeprefix(shared),
            f"{similarity[0][0]:.3f}" if similarity else "",
            f"{similarity[-1][-1]:.3f}" if similarity else "",
            f"{pair['random']:.3f}" if "random" in pair else "",
            f"{pair['angles'][0]:.0f}°" if "angles" in pair else "",
            f"{pair['cosine']:+.3f}",
            f"{100 * pair['sign_conflict']:.1f} %",
        ]
        rows.append(row)
    heads = ["module", "phi(1, 1)", "phi(all)", "random", "least angle", "cosine", "opposite signs"]
    print_table(heads, rows, title=f"compared with {other}: {len(rows)} modules in both")


def _show_maps(found: "AttentionResult") -> None:
    rows = []
    for layer, distances in enumerate(found["by_head"]):
        largest = max(distances)
        mean = sum(distances) / len(distances)
        rows.append([layer, mean, distances.index(largest), largest])
    title = (
        "attention without and with the adapter: "
        f"{found['distance']:.3f} bits apart (0 equal, 1 disjoint)"
    )
    heads = ["layer", "mean of its heads", "head that changed most", "by"]
    print_table(heads, rows, title=title)
    layer, head = found["most"]
    print(f"Layer {layer}, head {head}, which changed most:")
    for move in found["moves"]:
        weights = f"{move['before']:.2f} -> {move['after']:.2f}"
        print(f"  attention of {move['token']!r} to {move['at']!r}: {weights}")


def _shared_start(names: Sequence[str]) -> str:
    """Return the start that all names share, up to a dot.

    >>> _shared_start(["model.layers.0.q", "model.layers.1.q"])
    'model.layers.'
    """
    if len(names) < 2:
        return ""
    parents = [name.split(".")[:-1] for name in names]
    shared = ""
    for parts in zip(*parents, strict=False):
        if len(set(parts)) > 1:
            break
        shared += f"{parts[0]}."
    return shared
