"""Build a fresh adapter for a model from a Spec."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lorakit.adapter import Adapter
from lorakit.deltas.kinds import DELTAS
from lorakit.deltas.offset import OffsetLowRank
from lorakit.errors import SpecError, TargetError
from lorakit.inits import start
from lorakit.inits.classic import generator_for
from lorakit.inject.fingerprint import fingerprint
from lorakit.inject.full_parameters import expand_norms, find_full_modules
from lorakit.inject.places import Place, check_parts
from lorakit.inject.targets import select, short_names
from lorakit.inject.token_rows import start_token_rows
from lorakit.inject.tying import tie_factors
from lorakit.sites.slot import base_modules, base_parameters
from lorakit.spec import Spec, matches
from lorakit.text import near_misses, plural


def build_adapter(
    model: nn.Module,
    spec: Spec,
    known: Mapping[str, Place],
    seed: int,
    batches: Iterable[Any] | None,
) -> Adapter:
    """Build a fresh adapter for this model, or raise with every fault."""
    spec = replace(spec, full_modules=expand_norms(model, spec.full_modules))
    modules = find_full_modules(model, spec.full_modules)
    check_parts(spec.parts, known)
    chosen = select(
        model, spec.targets, spec.exclude, without=tuple(modules), parts=spec.parts, places=known
    )
    idle = [p for p in spec.overrides if not any(matches(p, n) for n in chosen)]
    if idle:
        raise TargetError(
            f"{len(idle)} of {len(spec.overrides)} overrides match no adapted layer.",
            [
                f"{p!r}   0 layers   {near_misses(p, {n.split('.')[-1] for n in chosen})}".rstrip()
                for p in idle
            ],
            "Nothing was attached.",
        )
    resolved = {n: spec.settings(n) for n in chosen}
    kind = DELTAS[spec.delta]
    faults = [
        f"{n}   {fault}"
        for n, p in chosen.items()
        for fault in (
            *p.site.faults(p.layer, resolved[n]),
            *kind.faults(p.site, resolved[n], spec),
            *start.start_faults(spec.delta, resolved[n], p),
        )
    ]
    if faults:
        raise SpecError(
            f"{plural(len(faults), 'layer')} cannot be adapted as asked.",
            faults,
            "Nothing was attached.",
        )
    dtype, deltas, seen = (
        getattr(torch, spec.dtype),
        {},
        start.observe(model, chosen, resolved, batches),
    )
    shared = kind.make_shared(
        {n: place.shape for n, place in chosen.items()}, spec, generator_for(seed, "")
    )
    for n, place in chosen.items():
        M, settings, generator = (
            place.site.read(place.layer),
            resolved[n],
            generator_for(seed, n),
        )
        A, B = start.initial_factors(place, settings, generator, seen.get(n), dtype)
        more: Any = {
            "alpha": settings.alpha,
            "dropout": settings.dropout,
            "scale_rule": settings.scale_rule,
            "kind": place.site.kind,
            "kernel": place.site.kernel(place.layer),
            "output_slice": place.site.output_slice,
        }
        deltas[n] = (
            kind.start(A, M, generator, **shared, **more)
            if B is None
            else OffsetLowRank(A, B, **more)
        )
    deltas |= tie_factors(model, spec, known, resolved, deltas)
    deltas |= start_token_rows(model, spec, known, (*chosen, *modules))
    deltas = {n: deltas[n] for n in known if n in deltas}
    inside = tuple(f"{n}." for n in modules)
    layers = {
        p.module_name: None for p in chosen.values() if p.site.kind != "experts"
    }  # files name layers, not their parts
    adapted, trained = {*layers, *chosen}, {}
    for path, own in base_parameters(model) if spec.bias != "none" or modules else ():
        layer, _, key = path.rpartition(".")
        bias = (spec.bias == "all" and "bias" in key) or (
            spec.bias == "adapted" and key == "bias" and layer in adapted
        )
        if (bias or path.startswith(inside)) and own.is_floating_point():
            trained[path] = nn.Parameter(own.detach().clone())
    if not deltas and not trained:
        raise SpecError(
            "Nothing would train: targets='none', and neither bias nor full_modules select a parameter.",
            advice="Name a target, a bias mode that the model has biases for, or a whole module.",
        )
    adapter = Adapter(spec, deltas, trained, {}, short_names(layers, dict(base_modules(model))))
    adapter.provenance |= {
        "base_fingerprint": fingerprint(model, without=modules, rows=adapter.trained_tokens),
        "seed": seed,
    }
    if name := getattr(model, "name_or_path", ""):  # of transformers
        adapter.provenance["base_model"] = name
    return adapter
