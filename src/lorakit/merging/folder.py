"""Folders of models on disk: their weights as they are stored, and the files beside them."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorakit.data.template_files import TOKENIZER_CONFIG
from lorakit.errors import ModelError
from lorakit.files import leaves_folder
from lorakit.models.own_tokenizer import TEMPLATES, TOKENIZER, has_tokenizer
from lorakit.text import plural

CONFIG = "config.json"
INDEX = ".index.json"
SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
# Files of these formats hold weights, which are the base's.
WEIGHTS = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".ot",
    ".onnx",
    ".onnx_data",
    ".gguf",
    ".npz",
    ".tflite",
)


@dataclass(frozen=True)
class BaseFolder:
    """The folder of a base.

    Attributes:
        path: the folder.
        weights: its weight files, in the order of their names.
        carried: paths of the files beside the weights that a copy gets, relative to the folder.
        left_out: paths of files and folders that hold weights of the base in another form.
    """

    path: Path
    weights: tuple[Path, ...]
    carried: tuple[str, ...]
    left_out: tuple[str, ...]

    def read_config(self) -> dict[str, Any]:
        """Return config.json."""
        return json.loads((self.path / CONFIG).read_text("utf-8"))


def find_base_folder(where: str) -> BaseFolder:
    """Return the folder of a model; that of a hub id is the snapshot on this machine.

    Args:
        where: a folder or a hub id.

    Raises:
        ModelError: it has no weights that can be rewritten, or a link to a file elsewhere.
    """
    path = Path(where)
    if not path.is_dir():
        from huggingface_hub import snapshot_download

        ignored = [f"*{suffix}" for suffix in WEIGHTS if suffix != ".safetensors"]
        path = Path(snapshot_download(where, ignore_patterns=[*ignored, "*/*.safetensors"]))
    weights = _weight_files(path)
    if not weights:
        raise ModelError(
            f"{where} has no {SAFETENSORS} and no {PICKLE}, whole or in parts.",
            advice="Nothing was written.",
        )
    carried, left_out = _sort_files(path, {file.name for file in weights})
    check_links(path, carried)
    return BaseFolder(path, weights, carried, left_out)


def check_links(folder: Path, names: Iterable[str]) -> None:
    """Refuse to copy what a link in a folder shows of the rest of this machine.

    Args:
        folder: of a base or an adapter.
        names: paths in it that are to be copied.

    Raises:
        ModelError: each link to a place outside is named.
    """
    faults = [
        f"{name} -> {(folder / name).resolve()}"
        for name in names
        if leaves_folder(folder / name, folder)
    ]
    if faults:
        raise ModelError(
            f"{folder} has {plural(len(faults), 'link')} to files outside of it, which a merged "
            "model would hold.",
            faults,
            "Replace them by copies of the files, or remove them. Nothing was written.",
        )


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the files that transformers reads the weights from."""
    for name in (SAFETENSORS, PICKLE):
        if (folder / name).is_file():
            return (folder / name,)
        index = folder / (name + INDEX)
        if index.is_file():
            names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
            return tuple(folder / Path(one).name for one in sorted(names))
    return ()


def _sort_files(folder: Path, weights: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the paths of the files that a copy gets, and of those that it does not."""
    carried, left_out = [], []
    own = _own_folders(folder)
    for path in sorted(folder.iterdir()):
        is_index = path.name in (SAFETENSORS + INDEX, PICKLE + INDEX)
        if path.name.startswith(".") or path.name in weights or is_index:
            continue
        if leaves_folder(path, folder):
            carried.append(path.name)  # `check_links` refuses it
        elif path.is_file():
            (left_out if path.name.endswith(WEIGHTS) else carried).append(path.name)
        elif path.is_dir():
            inside = [file for file in path.rglob("*") if file.is_file()]
            if path.name not in own and any(file.name.endswith(WEIGHTS) for file in inside):
                left_out.append(f"{path.name}/")
            else:
                carried += [str(file.relative_to(folder)) for file in inside]
    return tuple(carried), tuple(left_out)


def _own_folders(folder: Path) -> set[str]:
    """Return the folders that sentence-transformers lists as further modules of the model."""
    modules = folder / "modules.json"
    if not modules.is_file():
        return set()
    return {Path(one.get("path") or "").name for one in json.loads(modules.read_text("utf-8"))}


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a weight file, on the CPU."""
    if file.suffix == ".safetensors":
        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def stored_dtypes(base: BaseFolder) -> dict[str, torch.dtype]:
    """Return the dtype of every tensor of the weight files by name; no value is read."""
    dtypes: dict[str, torch.dtype] = {}
    for file in base.weights:
        if file.suffix != ".safetensors":
            dtypes |= {name: tensor.dtype for name, tensor in read_tensors(file).items()}
            continue
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  a file, not a dictionary
                part = opened.get_slice(name)
                empty = part[:0] if part.get_shape() else opened.get_tensor(name)
                dtypes[name] = empty.dtype
    return dtypes


def stored_tensors(base: BaseFolder) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and tensors of all weight files."""
    for file in base.weights:
        yield from read_tensors(file).items()


def copy_files(base: BaseFolder, target: Path, adapter: Path | None) -> None:
    """Copy the files beside the weights; tokenizer and chat template are the adapter's, if any.

    Args:
        base: folder of the base.
        target: the new folder; it is made.
        adapter: folder of the adapter.
    """
    replaced: set[str] = set()
    own: list[str] = []
    if adapter is not None:
        own = [name for name in (*TOKENIZER, *TEMPLATES) if (adapter / name).exists()]
        if not has_tokenizer(adapter):
            own = [name for name in own if name in TEMPLATES]
        replaced = set(TOKENIZER) if TOKENIZER_CONFIG in own else set()
        if _has_template(adapter, own):
            replaced |= set(TEMPLATES)
    if adapter is not None:
        check_links(adapter, _files_of(adapter, own))
    target.mkdir(parents=True)
    for name in base.carried:
        if Path(name).parts[0] not in replaced:
            _copy(base.path / name, target / name)
    for name in own:
        _copy(adapter / name, target / name)  # type: ignore[operator]


def _files_of(folder: Path, names: Iterable[str]) -> Iterator[str]:
    """Yield names in a folder, and for those of folders also the paths of all files in them."""
    for name in names:
        yield name
        for file in (folder / name).rglob("*"):
            yield str(file.relative_to(folder))


def _has_template(folder: Path, names: list[str]) -> bool:
    """Return True if these files of a folder hold a chat template."""
    if any(name in TEMPLATES for name in names):
        return True
    if TOKENIZER_CONFIG not in names:
        return False
    return bool(json.loads((folder / TOKENIZER_CONFIG).read_text("utf-8")).get("chat_template"))


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def write_weights(
    base: BaseFolder,
    target: Path,
    changes: Mapping[str, Tensor],
    dtype: torch.dtype | None,
) -> None:
    """Write the base's weight files with some tensors changed; new ones go into the last file.

    A file in which nothing changes is copied. Pickled files become safetensors.

    Args:
        base: folder of the base.
        target: the new folder.
        changes: new tensors by the name in the files.
        dtype: of all floating tensors; None keeps that of each.
    """
    left = dict(changes)
    weight_map: dict[str, str] = {}
    total = 0
    for file in base.weights:
        tensors = read_tensors(file)
        name = _new_name(file.name)
        own = {key: left.pop(key) for key in tensors if key in left}
        if file == base.weights[-1]:
            own |= left
        if own or dtype or file.suffix != ".safetensors":
            tensors = {**tensors, **own}
            stored = {key: _prepare(tensor, dtype) for key, tensor in tensors.items()}
            save_file(stored, target / name, metadata=_read_metadata(file))
            # safetensors makes files that only their owner can read.
            shutil.copymode(target / CONFIG, target / name)
            tensors = stored
        else:
            shutil.copyfile(file, target / name)
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(base.weights) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (target / (SAFETENSORS + INDEX)).write_text(text, "utf-8")


def _prepare(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a tensor as it is stored, alone in its memory."""
    if dtype and tensor.is_floating_point():
        tensor = tensor.to(dtype)
    return tensor.detach().cpu().contiguous().clone()


def _read_metadata(file: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file; for other files what transformers expects."""
    if file.suffix != ".safetensors":
        return {"format": "pt"}
    with safe_open(file, "pt") as opened:
        return opened.metadata() or {}


def _new_name(name: str) -> str:
    """Return the safetensors name of a weight file.

    >>> _new_name("pytorch_model-00001-of-00002.bin"), _new_name("model.safetensors")
    ('model-00001-of-00002.safetensors', 'model.safetensors')
    """
    if not name.endswith(".bin"):
        return name
    return name.replace("pytorch_model", "model", 1).removesuffix(".bin") + ".safetensors"


def write_config(base: BaseFolder, target: Path, changes: Mapping[str, object]) -> None:
    """Write the base's config.json with changes; those of a part of it are made there too.

    Args:
        base: folder of the base.
        target: the new folder.
        changes: values by key; a key with the value None is removed.
    """
    if not changes:
        return
    content = base.read_config()
    for key, value in changes.items():
        for part in (content, *(one for one in content.values() if isinstance(one, dict))):
            if part is content or key in part:
                part[key] = value
    kept = {key: value for key, value in content.items() if key not in changes or value is not None}
    (target / CONFIG).write_text(json.dumps(kept, indent=2) + "\n", "utf-8")
