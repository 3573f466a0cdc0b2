"""Contents of a folder that a command of same_as.py wrote, as plain JSON."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

CONFIGS = ("adapter_config.json", "config.json", "generation_config.json")
PROSE = (".md", ".png", ".svg", ".pdf")


def short_hash(data: bytes) -> str:
    """Return the start of a SHA-256."""
    return hashlib.sha256(data).hexdigest()[:24]


def digest(tensor: torch.Tensor) -> str:
    """Return dtype, shape and hash of the bits of a tensor."""
    plain = tensor.detach().cpu().contiguous()
    data = plain.flatten().view(torch.uint8).numpy().tobytes()
    return f"{plain.dtype} {list(plain.shape)} {short_hash(data)}"


def plain(value: Any) -> Any:
    """Return nested values as JSON holds them, tensors as their digests."""
    if isinstance(value, torch.Tensor):
        return digest(value)
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
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


def add_file(sections: dict[str, dict[str, Any]], name: str, path: Path) -> None:
    """Add what one file holds to the sections of a case."""
    sections.setdefault("files", {})[name] = "there"
    if path.suffix == ".safetensors":
        tensors, metadata = read_tensors(path)
        sections.setdefault("tensors", {})[name] = tensors
        sections.setdefault("headers", {})[name] = metadata
    elif path.name in CONFIGS:
        sections.setdefault("configs", {})[name] = path.read_text()
    elif path.name == "metrics.jsonl":
        sections.setdefault("losses", {})[name] = read_lines(path)
    elif path.suffix == ".jsonl":
        sections.setdefault("reports", {})[name] = read_lines(path)
    elif path.name in ("report.json", "run.json", "rank.json"):
        sections.setdefault("reports", {})[name] = json.loads(path.read_text())
    elif path.suffix == ".pt":
        sections.setdefault("states", {})[name] = read_state(path)
    elif path.suffix not in PROSE:
        sections["files"][name] = short_hash(path.read_bytes())


def sections_of(place: Path) -> dict[str, dict[str, Any]]:
    """Return what a file, or every file of a folder, holds, by section."""
    sections: dict[str, dict[str, Any]] = {}
    for path in sorted([place, *place.rglob("*")]):
        if path.is_file():
            name = path.relative_to(place).as_posix() if path != place else place.name
            add_file(sections, name, path)
    return sections
