"""Check that an adapter fits a model, and move it there."""

from collections.abc import Iterable, Mapping

from torch import nn

from lorakit.adapter import Adapter
from lorakit.deltas.base import Delta
from lorakit.errors import AdapterMismatch
from lorakit.inject.fingerprint import fingerprint
from lorakit.inject.full_parameters import find_full_modules
from lorakit.inject.places import Place
from lorakit.sites.slot import base_modules, base_parameters
from lorakit.text import near_misses, plural


def fit_adapter(
    model: nn.Module, adapter: Adapter, known: Mapping[str, Place], any_base: bool
) -> Adapter:
    """Check that a value fits this model, or raise with every misfit."""
    faults = [
        f"{n}   {fault}"
        for n, delta in adapter.deltas.items()
        for fault in _misfits(model, n, delta, known)
    ]
    own = dict(base_parameters(model))
    for path, tensor in adapter.full_parameters.items():
        if path not in own:
            faults.append(f"{path}   is not in the model")
        elif own[path].shape != tensor.shape:
            faults.append(
                f"{path}   is {tuple(tensor.shape)}, the model's is {tuple(own[path].shape)}"
            )
    modules = find_full_modules(model, adapter.spec.full_modules, require_match=False)
    if isinstance(adapter.target_names, tuple):
        # Full names say no more than the factors do; shorter ones also name the layers that have
        # none.
        ends = tuple(f".{t}" for t in adapter.target_names if t not in adapter.deltas)
        inside = tuple(f"{m}." for m in modules)
        held = {known[n].layer_name for n in adapter.deltas if n in known}
        faults += [
            f"{n}   is named by its targets, but the adapter has no factors for it"
            for n, place in known.items()
            if n == place.layer_name
            and n not in held
            and f".{n}".endswith(ends)
            and not f"{n}.".startswith(inside)
        ]
    base = adapter.provenance.get("base_model")
    where = (f"The file says it was trained on {base}. " if base else "") + "Nothing was attached."
    if faults:
        total = 2 * len(adapter.deltas) + len(adapter.full_parameters)
        counted = f"{plural(len(faults), 'fault')}, {plural(total, 'tensor')}"
        raise AdapterMismatch(
            f"The adapter does not fit {type(model).__name__}: {counted}.", faults, where
        )
    trained_on, here = (
        adapter.provenance.get("base_fingerprint"),
        fingerprint(model, without=modules, rows=adapter.trained_tokens),
    )
    if trained_on and here and trained_on != here and not any_base:
        raise AdapterMismatch(
            f"The adapter was trained on other base weights ({trained_on}) than this model's ({here}).",
            advice=f"{where} Pass any_base=True (--any-base) if you mean it.",
        )
    # In the model's order, whatever the file's was: optimizers know their tensors by number.
    adapter.deltas = {n: adapter.deltas[n] for n in known if n in adapter.deltas}
    for n, delta in adapter.deltas.items():
        site, layer = known[n].site, known[n].layer
        delta.to(site.read(layer).device).complete_for_layer(
            site.kind, site.kernel(layer), known[n].shape
        )
    adapter.full_parameters = {
        n: adapter.full_parameters[n] for n in own if n in adapter.full_parameters
    }
    return adapter


def _misfits(
    model: nn.Module, name: str, delta: Delta, known: Mapping[str, Place]
) -> Iterable[str]:
    if name not in known:
        there = name in dict(base_modules(model))
        longer = [n for n in known if n.endswith("." + name) or name.endswith("." + n)]
        hint = f"did you mean {longer[0]!r}?" if longer else near_misses(name, known, 1)
        yield f"{'is of a kind that cannot be adapted' if there else 'is not in the model'}   {hint}".rstrip()
        return
    kind, kernel = known[name].site.kind, known[name].site.kernel(known[name].layer)
    if delta.kind and delta.kind != kind and {delta.kind, kind} != {"linear", "conv1d"}:
        yield f"was made for a layer of kind {delta.kind}, the model's is {kind}"
    if delta.kind and delta.kernel != kernel:
        yield f"was made for a kernel of {delta.kernel}, the layer's is {kernel}"
    if delta.output_slice != known[name].site.output_slice:
        yield f"was made for the rows {delta.output_slice} (groups, rows of each, first, count), here they are {known[name].site.output_slice}"
    yield from delta.shape_faults(known[name].shape)
