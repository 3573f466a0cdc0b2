"""Calls of same_as.py: what the public names of lorakit give on small models, case by case.

Each case takes a folder that it may write, and returns nested values, digests for tensors.
Names are those of commit e8b0ad1: `public`, `member` and `asked` put in those of the tree.
"""

import importlib
import inspect
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from same_as import RENAMES
from same_as_files import digest, plain
from same_as_models import (
    BATCHES,
    IDS,
    arguments,
    built,
    families,
    forward,
    golden_model,
    outputs,
)
from same_as_refusals import ATTACHED, SPECS

import lorakit

LIVES = {
    "lora": "llama | rank: 4, alpha: 7",
    "dropout": "llama | rank: 4, dropout: 0.3, scale_rule: alpha/sqrt(rank)",
    "dora": "llama | rank: 3, delta: dora",
    "vera": "llama | rank: 4, delta: vera, targets: attention",
    "loha": "llama | rank: 3, delta: loha",
    "lokr": "llama | rank: 4, delta: lokr",
    "adalora": "llama | rank: 3, delta: adalora",
    "gaussian": "llama | rank: 3, init: gaussian, init_std: 0.05",
    "orthogonal": "llama | rank: 3, init: orthogonal, dtype: float64",
    "pissa": "llama | rank: 3, init: pissa",
    "pissa-fast": "llama | rank: 3, init: pissa-fast",
    "olora": "llama | rank: 3, init: olora, dtype: bfloat16",
    "eva": "llama | rank: 3, init: eva",
    "lora-ga": "llama | rank: 3, init: lora-ga",
    "norms": "llama | rank: 2, targets: qv, whole_modules: [norms]",
    "overrides": "llama | rank: 2, overrides: {up_proj: {rank: 5}, o_proj: {init: olora}}",
    "embedding": "llama | rank: 2, targets: [embed_tokens, lm_head, q_proj]",
    "embedding-dora": "llama | rank: 2, targets: [embed_tokens, lm_head], delta: dora",
    "tokens": "llama | rank: 2, targets: qv, token_rows: [3, 5, 9]",
    "tokens-named": "llama | rank: 2, targets: [k_proj], token_rows: {lm_head: [4]}",
    "tie": "tied | rank: 2, targets: [embed_tokens, lm_head], tie: true",
    "untied": "tied | rank: 2, targets: [embed_tokens, v_proj]",
    "tokens-tied": "tied | rank: 2, targets: none, token_rows: [2, 4]",
    "gpt2": "gpt2 | rank: 3, bias: all",
    "gpt2-dora": "gpt2 | rank: 3, delta: dora, bias: adapted, targets: [c_attn]",
    "gpt2-qv": "gpt2 | rank: 3, targets: [c_attn.q, c_attn.v, c_fc]",
    "gpt2-parts": "gpt2 | rank: 3, targets: [c_fc.one], parts: {c_fc: {one: 40, two: 24}}",
    "bert": "bert | rank: 3, targets: qv, whole_modules: [classifier]",
    "bert-loha": "bert | rank: 2, delta: loha, exclude: [key]",
    "t5": "t5 | rank: 3",
    "mixtral": "mixtral | rank: 2",
    "mixtral-half": "mixtral | rank: 2, dtype: bfloat16, exclude: [gate_up_proj]",
    "convolutions": "convolutions | rank: 2, targets: conv",
    "convolutions-dora": "convolutions | rank: 2, targets: ['0', '4'], delta: dora",
    "attention": "attention | rank: 2",
    "recurrent": "recurrent | rank: 2, targets: ['lstm*', bilinear, head]",
    "int8": "int8 | rank: 3",
    "int8-dora": "int8 | rank: 3, delta: dora",
}
ROUTED = ("llama", "tied", "gpt2", "bert", "t5")
ROWS = ["a", None, {"a": 0.5, "b": 2.0}, ["a", "b"]]
SHAPES = ("even", "bottom-heavy", "top-heavy", "linear", "linear-falling")
PRESETS = "all-linear conv none q k v o qv qkv qkvo attention mlp"
TOKENS = [[3, 17, 8, 0, 19]]
Told = dict[str, Any]


def member(thing: Any, name: str) -> Any:
    """Return an attribute by its new name, or by its old one where there is no new one."""
    new = RENAMES["names"].get(name, name)
    return getattr(thing, new if hasattr(thing, new) else name)


def public(name: str) -> Any:
    """Return a public name of lorakit."""
    return member(lorakit, name)


def module(path: str) -> Any:
    """Return a module by its new path, or by its old one where there is no new one."""
    try:
        return importlib.import_module(RENAMES["modules"].get(path, path))
    except ImportError:
        return importlib.import_module(path)


def renamed(value: Any, known: Any) -> Any:
    """Return settings under the names that are known, at every depth."""
    if not isinstance(value, dict):
        return value
    changed = {}
    for key, inner in value.items():
        new = RENAMES["fields"].get(key, key)
        name = new if new in known else key
        changed[name] = renamed(inner, known)
    return changed


def asked(function: Any, *positional: Any, **options: Any) -> Any:
    """Call a function with keywords by the names that it has."""
    known = inspect.signature(function).parameters
    return function(*positional, **renamed(options, known))


def parsed(text: str) -> tuple[str, Told]:
    """Return the family and the fields of a case."""
    family, _, fields = text.partition(" | ")
    return family, yaml.safe_load("{" + fields + "}")


def new_spec(**fields: Any) -> Any:
    """Return a Spec of these fields."""
    return asked(public("Spec"), **fields)


def attempted(function: Callable[..., Any], *given: Any, **more: Any) -> Any:
    """Return the result of a call, or the kind of its refusal."""
    try:
        return function(*given, **more)
    except lorakit.LorakitError as error:
        return {
            "error": type(error).__name__,
            "faults": len(error.faults),
            "exit": error.exit_code,
        }


def filled(adapter: Any, seed: int = 0) -> Any:
    """Move every parameter of an adapter by small random numbers."""
    named = sorted(adapter.named_parameters())
    for i, (_, parameter) in enumerate(named):
        generator = torch.Generator().manual_seed(100 * seed + i)
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_((noise / 8).to(parameter.dtype))
    return adapter


def attached(model: Any, fields: Told, name: str = "default", seed: int = 3) -> Any:
    """Attach a fresh adapter."""
    spec = new_spec(**fields)
    looks = fields.get("init") in ("eva", "lora-ga")
    options = {"name": name, "seed": seed}
    if looks:
        options["batches"] = BATCHES
    return asked(public("attach"), model, spec, **options)


def gradients(adapter: Any) -> Told:
    """Return the digests of the gradients of an adapter, by name."""
    found = {}
    for name, parameter in adapter.named_parameters():
        found[name] = plain(parameter.grad)
    return found


def parameters(adapter: Any) -> Told:
    """Return the digests of the parameters of an adapter, by name."""
    found = {}
    for name, parameter in adapter.named_parameters():
        found[name] = digest(parameter)
    return found


def trainable(model: Any) -> list[str]:
    """Return the names of the parameters that train."""
    found = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.append(name)
    return found


def described(model: Any, adapter: Any) -> Told:
    """Return what is told of an adapter and of the model it is on."""
    covered = public("coverage")(model)
    held = parameters(adapter)
    return {
        "content_hash": adapter.content_hash(),
        "text": repr(adapter),
        "parameters": held,
        "order": list(held),
        "count": adapter.parameters_count,
        "spec": adapter.spec.to_dict(),
        "provenance": adapter.provenance,
        "deltas": list(adapter.deltas),
        "placed": list(member(adapter, "placed")),
        "whole": list(member(adapter, "whole")),
        "rows": member(adapter, "rows"),
        "coverage": covered.to_dict(),
        "coverage text": str(covered),
        "fingerprint": public("fingerprint")(model),
        "state": list(model.state_dict()),
        "trains": trainable(model),
        "enabled": dict(public("enabled")(model)),
    }


def trained(model: Any, adapter: Any) -> Iterator[Told]:
    """Take three steps and yield loss and gradients of each."""
    torch.manual_seed(5)
    model.train()
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    for _ in range(3):
        loss = forward(model).float().square().mean()
        loss.backward()
        yield {
            "loss": loss.item(),
            "gradients": gradients(adapter),
        }
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def switched(model: Any) -> Told:
    """Return the outputs with the adapter off, half on, and on again."""
    enable = public("enable")
    ways = {"off": None, "half": {"default": 0.5}, "on": "default"}
    told = {}
    for name, which in ways.items():
        refused = attempted(enable, model, which)
        told[name] = [refused, outputs(model)]
    return told


def merged(model: Any) -> Told:
    """Return the outputs after a merge and after it is taken back."""
    undo = asked(public("merge"), model, allow_loss=True)
    told: Told = {"merged": outputs(model)}
    told["state"] = plain(dict(model.state_dict()))
    told["before"] = plain(undo.before)
    told["again"] = attempted(public("merge"), model)
    public("unmerge")(model, undo)
    told["unmerged"] = outputs(model)
    return told


def checked(model: Any) -> Any:
    """Return what `check` finds for the fixed inputs."""
    return attempted(public("check"), model, **arguments(model))


def life(text: str, folder: Path) -> Told:
    """Return what every public call gives on a model with one adapter, from attach to load."""
    family, fields = parsed(text)
    model = built(family)
    told: Told = {"base": outputs(model)}
    told["fingerprint"] = public("fingerprint")(model)
    adapter = attached(model, fields)
    told["fresh"] = [outputs(model), described(model, adapter)]
    filled(adapter)
    told["filled"] = [outputs(model), adapter.content_hash()]
    told["steps"] = list(trained(model, adapter))
    told["trained"] = [outputs(model), described(model, adapter)]
    told["checked"] = checked(model)
    told["switched"] = switched(model)
    told["merged"] = attempted(merged, model)
    told["saved"] = plain(attempted(adapter.save, folder))
    public("detach")(model)
    told["detached"] = [outputs(model), list(model.state_dict())]
    told["left"] = list(public("attached")(model))
    if folder.exists():
        told["loaded"] = loaded(built(family), folder)
    return told


def loaded(model: Any, folder: Path) -> Told:
    """Return what an adapter from disk is, and what it gives on a fresh model."""
    adapter = public("Adapter").load(folder)
    told: Told = {"same as its copy": adapter == adapter.copy()}
    told["alone"] = [repr(adapter), adapter.content_hash()]
    options = {"name": "again", "trainable": False}
    asked(public("attach"), model, adapter, **options)
    told["outputs"] = outputs(model)
    told["adapter"] = described(model, adapter)
    return told


def routed(family: str, _: Path) -> Told:
    """Return the outputs of rows that go to adapters of their own, and their gradients."""
    model = built(family)
    filled(attached(model, {"rank": 2, "targets": "attention"}, "a", 0))
    filled(attached(model, {"rank": 3}, "b", 1), seed=1)
    told: Told = {}
    with asked(public("route"), model, ROWS, batch_first=True):
        y = forward(model)
        y.float().square().mean().backward()
    told["routed"] = digest(y)
    for name, adapter in public("attached")(model).items():
        told[name] = gradients(adapter)
    for which in ("b", {"a": 0.3, "b": -1.0}, ["a", "b"]):
        public("enable")(model, which)
        told[f"enabled {which}"] = outputs(model)
    public("detach")(model, "a")
    told["one left"] = [outputs(model), str(public("coverage")(model))]
    told["refused"] = attempted(enter_route, model, ["c"])
    return told


def enter_route(model: Any, rows: list[Any]) -> None:
    """Enter a block whose rows are routed, and leave it."""
    with asked(public("route"), model, rows):
        pass


def scheduled(_: Path) -> Told:
    """Return the specs that spread a rank over the layers in every way."""
    told = {}
    schedule, suggest = public("schedule"), public("suggest")
    for family in ("llama", "gpt2"):
        model = built(family)
        spec = new_spec(rank=3, alpha=6.0)
        for shape in SHAPES:
            chosen = asked(schedule, model, spec, shape=shape)
            fewer = asked(schedule, model, spec, shape=shape, budget=1234)
            told[f"{family} {shape}"] = [chosen.to_dict(), fewer.to_dict()]
        options = {"shape": "explained-variance", "batches": BATCHES}
        told[f"{family} data"] = asked(schedule, model, spec, **options).to_dict()
        told[f"{family} best"] = suggest(model, spec, BATCHES).to_dict()
    return told


def selected(_: Path) -> Told:
    """Return the layers that each preset names in each family."""
    told = {}
    for family in families():
        model = built(family)
        for preset in PRESETS.split():
            found = attempted(public("select"), model, preset)
            told[f"{family} {preset}"] = found if "error" in found else list(found)
    return told


def factors(_: Path) -> Told:
    """Return factors of matrices, and what a pair of factors is."""
    told: Told = {}
    generator = torch.Generator().manual_seed(0)
    M = torch.randn(20, 12, generator=generator)
    for rank in (1, 5, 12):
        told[f"rank {rank}"] = plain(list(public("factorize")(M, rank)))
    A, B = M[:4].clone(), M[:, :4].clone()
    pair = public("LowRank")(A, B, alpha=6.0)
    told["matrix"] = digest(pair.matrix())
    told["pair"] = [pair.rank, list(pair.shape), pair.scale]
    return told


def values(_: Path) -> Told:
    """Return what an adapter is without any model, and specs as they are written."""
    adapter = filled(attached(built("llama"), {"rank": 2, "targets": "qv"}))
    half = adapter.copy().to(torch.bfloat16)
    spec = new_spec(rank=8, overrides={"up_proj": {"rank": 64}})
    again = public("Spec").from_dict(spec.to_dict())
    return {
        "half": [repr(half), half.content_hash()],
        "dtype": str(half.dtype),
        "device": str(half.device),
        "equal": [half == adapter, adapter.copy() == adapter],
        "spec": spec.to_dict(),
        "same spec": again == spec,
        "scale": spec.settings("layers.0.up_proj").scale,
    }


def drop_in(_: Path) -> Told:
    """Return what the layers of lorakit.loralib give in both modes."""
    torch.manual_seed(0)
    lora, told = module("lorakit.loralib"), {}
    x = torch.randn(3, 4, 16)
    layers = {
        "linear": lora.Linear(16, 8, r=3, lora_alpha=6),
        "merged": lora.MergedLinear(16, 24, r=2, enable_lora=[True, False, True]),
        "embedding": lora.Embedding(20, 16, r=2),
        "convolution": lora.Conv2d(3, 6, 3, r=2),
    }
    given = {"embedding": IDS % 20, "convolution": x.reshape(1, 3, 8, 8)}
    for name, layer in layers.items():
        lora.mark_only_lora_as_trainable(layer)
        for parameter in layer.parameters():
            parameter.data.add_(0.01)
        before = digest(layer(given.get(name, x)))
        after = digest(layer.eval()(given.get(name, x)))
        state = plain(lora.lora_state_dict(layer))
        told[name] = [before, after, state, list(layer.state_dict())]
    return told


def golden(family: str, folder: Path) -> Told:
    """Return what a file that PEFT wrote means, and whether it gives what PEFT computed."""
    root = Path(str(lorakit.__file__)).parents[2] / "tests"
    config = next(root.rglob(f"golden/{family}/adapter_config.json"))
    expected = json.loads((config.parent / "expected.json").read_text())
    adapter = public("Adapter").load(config.parent)
    model = golden_model(family)
    told: Told = {"base": outputs(model, TOKENS)}
    asked(public("attach"), model, adapter)
    told["outputs"] = outputs(model, TOKENS)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(TOKENS)).logits
    wanted = torch.tensor(expected["adapted"])
    told["as PEFT"] = torch.allclose(logits, wanted, atol=1e-5)
    told["adapter"] = described(model, adapter)
    adapter.save(folder)
    return told


def refused_specs(_: Path) -> Told:
    """Return how wrong specs are refused."""
    told = {}
    for name, text in SPECS.items():
        fields = yaml.safe_load("{" + text + "}")
        told[name] = plain(attempted(new_spec, **fields))
    return told


def refused_attach(_: Path) -> Told:
    """Return how wrong specs are refused by a model, and that it stays as it was."""
    told = {}
    for name, text in ATTACHED.items():
        family, fields = parsed(text)
        model = built(family)
        refused = plain(attempted(attached, model, fields))
        left = list(public("attached")(model))
        told[name] = [refused, outputs(model), left]
    return told


def refused_calls(folder: Path) -> Told:
    """Return how wrong calls on a model are refused."""
    model, told = built("llama"), {}
    enable, attach = public("enable"), public("attach")
    told["nothing attached"] = attempted(enable, model, "a")
    fields = {"rank": 2, "whole_modules": ["lm_head"]}
    adapter = filled(attached(model, fields, "a"))
    spec = new_spec(rank=2)
    told["name taken"] = attempted(attach, model, spec, name="a")
    told["odd name"] = attempted(attach, model, spec, name="a.b")
    told["no spec"] = attempted(attach, model, "qv")
    told["no data"] = attempted(attach, model, new_spec(rank=2, init="eva"), name="b")
    told["unknown"] = attempted(enable, model, {"b": 1.0, "c": 2.0})
    told["weight"] = attempted(enable, model, {"a": float("nan")})
    told["part of whole"] = attempted(enable, model, {"a": 0.5})
    told["routed whole"] = attempted(enter_route, model, ["a"])
    told["clash"] = attempted(attach, model, adapter.copy(), name="b")
    told["other base"] = attempted(attach, built("llama", seed=1), adapter.copy())
    told["other model"] = attempted(attach, built("gpt2"), adapter.copy())
    undo = public("merge")(model)
    told["merged"] = attempted(enable, model, None)
    told["attach merged"] = attempted(attach, model, spec, name="c")
    public("unmerge")(model, undo)
    told["unmerged twice"] = attempted(public("unmerge"), model, undo)
    told["detach"] = attempted(public("detach"), model, "z")
    told["no file"] = attempted(public("Adapter").load, folder / "none")
    next(adapter.parameters()).data.fill_(float("inf"))
    told["not finite"] = attempted(adapter.save, folder)
    told["merge of it"] = attempted(public("merge"), model)
    return {name: plain(value) for name, value in told.items()}


CASES: dict[str, Callable[[Path], Told]] = {
    **{f"life-{name}": partial(life, text) for name, text in LIVES.items()},
    **{f"route-{name}": partial(routed, name) for name in ROUTED},
    "value-schedule": scheduled,
    "value-select": selected,
    "value-factors": factors,
    "value-adapter": values,
    "value-loralib": drop_in,
    "golden-llama": partial(golden, "llama"),
    "golden-gpt2": partial(golden, "gpt2"),
    "refusal-specs": refused_specs,
    "refusal-attach": refused_attach,
    "refusal-calls": refused_calls,
}
