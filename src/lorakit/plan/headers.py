"""Models of which only the headers of safetensors files are read: shapes without values."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from lorakit.errors import ModelError

Shapes = Mapping[str, tuple[int, ...]]
EMBEDDING = re.compile(r"(^|\.)(\w*embed\w*|wte|wpe|shared)$")
HEADS = ("lm_head", "embed_out")


class HeaderModel(nn.Module):
    """A tree of layers whose shapes are known, and nothing else."""

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the head, which presets leave alone, as models of transformers do."""
        for name, module in self.named_modules():
            if name.rpartition(".")[2] in HEADS:
                return module
        return None


def find_weight_files(path: Path) -> list[Path]:
    """Return a safetensors file, or those of a folder, sorted."""
    if path.is_file() and path.suffix == ".safetensors":
        return [path]
    return sorted(path.glob("*.safetensors"))


def read_shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in these files; no value is read.

    Raises:
        ModelError: a file that is no safetensors file.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as reader:
                for key in reader.keys():  # noqa: SIM118
                    shapes[key] = tuple(reader.get_slice(key).get_shape())
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} cannot be read: {error}") from error
    return shapes


def build_from_shapes(shapes: Shapes) -> HeaderModel:
    """Return a tree of layers of these shapes on the meta device.

    A matrix becomes a linear layer, or an embedding if its name says so.
    """
    model = HeaderModel()
    for key, shape in shapes.items():
        path, _, last = key.rpartition(".")
        is_bias = last == "bias" and len(shapes.get(f"{path}.weight", ())) == 2
        if is_bias:
            continue
        if last == "weight" and len(shape) == 2:
            parent, _, name = path.rpartition(".")
            setattr(_parent_of(model, parent), name, _layer(path, shapes))
        else:
            parameter = nn.Parameter(torch.empty(shape, device="meta"))
            setattr(_parent_of(model, path), last, parameter)
    return model


def _layer(path: str, shapes: Shapes) -> nn.Module:
    out, inputs = shapes[f"{path}.weight"]
    if EMBEDDING.search(path):
        return nn.Embedding(out, inputs, device="meta")
    return nn.Linear(inputs, out, bias=f"{path}.bias" in shapes, device="meta")


def _parent_of(model: nn.Module, path: str) -> nn.Module:
    """Return the module at a path; those on the way that are missing are added."""
    parent = model
    for name in path.split(".") if path else ():
        child = parent._modules.get(name)
        if child is None:
            child = nn.Module()
            parent.add_module(name, child)
        parent = child
    return parent
