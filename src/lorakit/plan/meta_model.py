"""A model without its weights: from a config, from the headers of safetensors files, or from a
card; on the meta device.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lorakit.adapter import Adapter
from lorakit.deltas.base import LowRank
from lorakit.deltas.offset import OffsetLowRank
from lorakit.deltas.tied import TiedLowRank
from lorakit.errors import ModelError, SpecError
from lorakit.inits.start import STARTS, start_faults
from lorakit.inject.attach import attach, detach
from lorakit.inject.places import find_places
from lorakit.models.load import load_config, locate, quiet
from lorakit.plan.published import PREFIX, PUBLISHED
from lorakit.spec import Spec
from lorakit.text import near_misses, plural

EMBEDDING = re.compile(r"(^|\.)(\w*embed\w*|wte|wpe|shared)$")


@dataclass(frozen=True)
class MetaModel:
    """A model whose tensors have shapes and no values.

    Attributes:
        model: on the meta device.
        name: as it was asked for.
        task: causal-lm, classify or regress.
        new_modules: modules that its checkpoint does not hold: a new head.
        max_length: tokens the model can read at most; 0 where nothing says.
        runs: whether its forward is known; headers alone tell shapes, not what is done with them.
    """

    model: Any
    name: str
    task: str
    new_modules: tuple[str, ...]
    max_length: int
    runs: bool = True


def load_meta_model(name: str, task: str = "auto", labels: int = 2) -> MetaModel:
    """Return a model of this name without its weights; of a model on the hub, its config alone is
    fetched.

    Args:
        name: a folder, a hub id, `builtin:NAME`, `card:NAME`, or a safetensors file (or a folder of
            them without a config).
        task: causal-lm, classify, regress, or auto: told by the config.
        labels: classes, for classify.

    Raises:
        ModelError: there is no such model, or none that can be built for the task.
    """
    if name.startswith(PREFIX):
        short = name.removeprefix(PREFIX)
        if short not in PUBLISHED:
            raise ModelError(
                f"There is no {name!r}. {near_misses(short, PUBLISHED)}".rstrip(),
                advice=f"Cards: {', '.join(PUBLISHED)}.",
            )
        return _from_config(
            PUBLISHED[short].config(),
            name,
            PUBLISHED[short].task if task == "auto" else task,
            labels,
            None,
        )
    files = _weight_files(Path(name))
    if files and not (Path(name) / "config.json").is_file():
        return _from_headers(_headers(files), name)
    cards = ", ".join(PREFIX + card for card in PUBLISHED)
    where = locate(name)[0]
    config = load_config(where, advice=f"Name a folder, a hub id within reach, or a card: {cards}.")
    held = set(_headers(_weight_files(Path(where)))) or None
    return _from_config(config, name, task, labels, held)


def attach_on_meta(model: nn.Module, spec: Spec) -> Adapter:
    """Put an adapter on a model of the meta device; no random number is drawn, which for large
    models takes seconds.

    Raises:
        SpecError, TargetError: as `attach`.
    """
    # A start that reads weights or data has none here, and only one thing of it counts: whether B
    # starts at zero.
    init = "kaiming" if STARTS[spec.init] else spec.init
    overrides = {
        p: {**c, "init": "kaiming"} if STARTS[c.get("init", init)] else c
        for p, c in spec.overrides.items()
    }
    with _NothingDrawn():
        adapter = attach(model, replace(spec, init=init, overrides=overrides))
        inits = {n: spec.settings(n) for n, delta in adapter.deltas.items() if not delta.by_token}
        if any(STARTS[settings.init] for settings in inits.values()):
            detach(model)
            known = find_places(model, spec.parts)
            faults = [
                f"{n}   {fault}"
                for n, settings in inits.items()
                for fault in start_faults(spec.delta, settings, known[n])
            ]
            faults += [
                f"{n}   has one pair with an embedding: init {settings.init!r} cannot start it"
                for n, settings in inits.items()
                if spec.tie and isinstance(adapter.deltas[n], TiedLowRank) and STARTS[settings.init]
            ]
            if faults:
                raise SpecError(
                    f"{plural(len(faults), 'layer')} cannot be adapted with these settings.",
                    faults,
                    "Nothing was planned.",
                )
            for n, settings in inits.items():
                start, delta = STARTS[settings.init], adapter.deltas[n]
                if start and start.moves_B and isinstance(delta, LowRank):
                    more: Any = {
                        k: getattr(delta, k)
                        for k in (
                            "alpha",
                            "scale_rule",
                            "dropout",
                            "kind",
                            "kernel",
                            "output_slice",
                        )
                    }
                    adapter.deltas[n] = OffsetLowRank(delta.A.detach(), delta.B.detach(), **more)
            attach(model, adapter)
    return adapter


class _NothingDrawn(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.rand.generator, torch.ops.aten.randn.generator):
            return torch.empty(args[0], device="meta")
        if (
            func is torch.ops.aten._to_copy.default and args[0].is_meta
        ):  # what was not drawn stays so wherever it goes
            kwargs = {**(kwargs or {}), "device": "meta"}
        return func(*args, **(kwargs or {}))


def _from_config(
    config: Any, name: str, task: str, labels: int, held: set[str] | None
) -> MetaModel:
    import transformers

    task = _told(config) if task == "auto" else task
    cls = (
        transformers.AutoModelForCausalLM
        if task == "causal-lm"
        else transformers.AutoModelForSequenceClassification
    )
    if task != "causal-lm":
        config.num_labels = labels if task == "classify" else 1
        if config.get_text_config().pad_token_id is None:  # any will do: no token is read
            config.pad_token_id = config.get_text_config().pad_token_id = 0
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]), quiet():
            model: Any = cls.from_config(config, dtype=torch.float32)
    except (ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        line = next(
            (text for text in str(error).splitlines() if text.strip()), type(error).__name__
        )
        raise ModelError(f"{name} cannot be loaded for {task}: {line}") from error
    text = config.get_text_config()
    longest = (
        getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None) or 0
    )
    new = _new_modules(model, held) if held is not None or task != "causal-lm" else ()
    if new and task == "causal-lm":
        raise ModelError(
            f"{name} has no weights for {', '.join(new)}: it is no causal language model.",
            advice="Language modelling needs one; a classifier needs rows with labels.",
        )
    return MetaModel(model, name, task, new, int(longest))


def _told(config: Any) -> str:
    """Return the task that a config says it is for: language modelling, unless it is of an encoder
    or a classifier.
    """
    names = config.architectures or ()
    if any(n.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for n in names):
        return "causal-lm"
    return (
        "classify"
        if any("Classification" in n or "Masked" in n or n.endswith("Model") for n in names)
        else "causal-lm"
    )


def _new_modules(model: Any, held: set[str] | None) -> tuple[str, ...]:
    """Return the modules of the head that a checkpoint with these tensors does not hold; all of it
    where none is known.
    """
    base = model.base_model_prefix
    tied = {
        id(p) for p in model.base_model.parameters()
    }  # a head that is the embedding has no tensor of its own
    heads = [
        n
        for n, child in model.named_children()
        if n != base and any(id(p) not in tied for p in child.parameters())
    ]
    return tuple(n for n in heads if held is None or not any(f".{n}." in f".{key}" for key in held))


class Headers(nn.Module):
    """Layers of which the shapes alone are known."""

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the head, which presets leave alone, as models of transformers do."""
        return next(
            (
                m
                for n, m in self.named_modules()
                if n.rpartition(".")[2] in ("lm_head", "embed_out")
            ),
            None,
        )


def _weight_files(path: Path) -> list[Path]:
    return (
        [path]
        if path.is_file() and path.suffix == ".safetensors"
        else sorted(path.glob("*.safetensors"))
    )


def _headers(files: list[Path]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor; no value is read."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as reader:
                shapes |= {key: tuple(reader.get_slice(key).get_shape()) for key in reader.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} cannot be read: {error}") from error
    return shapes


def _from_headers(shapes: Mapping[str, tuple[int, ...]], name: str) -> MetaModel:
    """Return a tree of layers of these shapes: a matrix is a linear layer, or an embedding where
    its name says so.
    """
    model = Headers()
    for key, shape in shapes.items():
        path, _, last = key.rpartition(".")
        if last == "bias" and len(shapes.get(f"{path}.weight", ())) == 2:
            continue
        parent: nn.Module = model
        if last == "weight" and len(shape) == 2:
            path, _, last = path.rpartition(".")
            out, inputs = shape
            whole = f"{path}.{last}" if path else last
            layer = (
                nn.Embedding(*shape, device="meta")
                if EMBEDDING.search(whole)
                else nn.Linear(inputs, out, bias=f"{whole}.bias" in shapes, device="meta")
            )
        else:
            layer = nn.Parameter(torch.empty(shape, device="meta"))
        for part in filter(None, path.split(".")):
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent._modules[part]  # type: ignore[assignment]
        setattr(parent, last, layer)
    return MetaModel(model, name, "causal-lm", (), 0, runs=False)
