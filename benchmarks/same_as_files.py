"""Contents of a folder that a command of same_as.py wrote, as plain JSON."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

CONFIGS = ("adapter_config.json", "config.json", "generation_config.json")
REPORTS = ("report.json", "run.json", "rank.json")
LONG = 500  # items from which a list is told by its hash: the state of a random generator
PROSE = (".md", ".png", ".svg", ".pdf")
Sections = dict[str, dict[str, Any]]


def short_hash(data: bytes) -> str:
    """Return the start of a SHA-256."""
    return hashlib.sha256(data).hexdigest()[:24]


def digest(tensor: torch.Tensor) -> str:
    """Return dtype, shape and hash of the bits of a tensor."""
    plain = tensor.detach()
    if type(plain) is not torch.Tensor:
        plain = plain.dequantize()
    plain = plain.cpu().contiguous()
    data = plain.flatten().view(torch.uint8).numpy().tobytes()
    return f"{plain.dtype} {list(plain.shape)} {short_hash(data)}"


def plain(value: Any) -> Any:
    """Return nested values as JSON holds them, tensors as their digests."""
    if isinstance(value, torch.Tensor):
        return digest(value)
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        told = [plain(inner) for inner in value]
        return told if len(told) < LONG else f"{len(told)} items {short_hash(repr(told).encode())}"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file, without any library."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        bits = short_hash(data[end + first : end + last])
        tensors[name] = f"{entry['dtype']} {entry['shape']} {bits}"
    return tensors, {**metadata, "order of tensors": " ".join(header)}


def read_lines(path: Path) -> list[Any]:
    """Return the rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_state(path: Path) -> Any:
    """Return the state of a checkpoint."""
    return plain(torch.load(path, map_location="cpu", weights_only=True))


def section_of(path: Path) -> tuple[str, Any]:
    """Return the section that a file belongs to, and what is recorded of it there."""
    if path.name in CONFIGS:
        return "configs", path.read_text()
    if path.name == "metrics.jsonl":
        return "losses", read_lines(path)
    if path.suffix == ".jsonl":
        return "reports", read_lines(path)
    if path.name in REPORTS:
        return "reports", json.loads(path.read_text())
    if path.suffix == ".pt":
        return "states", read_state(path)
    if path.suffix in PROSE:
        return "files", "there"
    return "files", short_hash(path.read_bytes())


def add_file(sections: Sections, name: str, path: Path) -> None:
    """Add what one file holds to the sections of a case."""
    sections.setdefault("files", {})[name] = "there"
    if path.suffix == ".safetensors":
        tensors, metadata = read_tensors(path)
        sections.setdefault("tensors", {})[name] = tensors
        sections.setdefault("headers", {})[name] = metadata
        return
    section, held = section_of(path)
    sections.setdefault(section, {})[name] = held


def sections_of(place: Path) -> Sections:
    """Return what a file, or every file of a folder, holds, by section."""
    sections: Sections = {}
    if place.is_file():
        add_file(sections, place.name, place)
    for path in sorted(place.rglob("*")):
        if path.is_file():
            name = path.relative_to(place).as_posix()
            add_file(sections, name, path)
    return sections
