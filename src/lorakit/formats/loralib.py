"""What `lora.lora_state_dict(model)` of microsoft/LoRA's package holds, saved by torch.save: `.pt`,
`.bin`, `.pth`.

Keys are `<module>.lora_A` and `<module>.lora_B`; beside them may stand biases, or a head. The file
says neither alpha nor what a layer is, so the reader is told alpha, and takes kinds and kernels
from a model; without one, every layer is taken for linear. A MergedLinear's factors lie part after
part: A (rank * parts, in), B (rows of a part * parts, rank). Those of a convolution are (B A)
    viewed as the kernel, whose matrix has another rank: they are factored anew, exactly, by its
    singular value decomposition.

Source: github.com/microsoft/LoRA, loralib 0.1.2, `layers.py` and `utils.py`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.deltas.base import LowRank
from lorakit.deltas.overrides import requested_settings, write_overrides
from lorakit.deltas.tied import TiedLowRank
from lorakit.errors import AdapterFileError
from lorakit.files import replace_file
from lorakit.formats.parts import AdapterParts
from lorakit.linalg import split_singular_values
from lorakit.sites.base import Site
from lorakit.sites.find import site_of
from lorakit.spec import Spec, full_name, matches
from lorakit.text import plural

SUFFIXES = (".pt", ".bin", ".pth")
WRAPPED = (
    "model_state_dict",
    "state_dict",
)  # the scripts of the repository save it under such a key


def sniff(path: str | Path) -> bool:
    """Tell whether this is a file that holds factors in loralib's layout."""
    path = Path(path)
    if not path.is_file() or path.suffix not in SUFFIXES:
        return False
    try:
        return any(_split(key)[1] == "lora_A" for key in _load(path))
    except AdapterFileError:
        return False


def read(
    path: str | Path,
    *,
    alpha: float,
    model: nn.Module | None = None,
    enable_lora: Mapping[str, Sequence[bool]] | None = None,
) -> AdapterParts:
    """Read the factors of a loralib model: `Adapter(*read("lora.pt", alpha=16))`.

    Args:
        path: the file.
        alpha: `lora_alpha` of the layers; the scale is alpha / r, and the file does not hold it.
        model: the base, whose layers tell embeddings, convolutions and the rows of fused layers; it
            is only looked at.
        enable_lora: name patterns of MergedLinear layers, and the list that each was made with.

    Returns:
        Spec, deltas by name (`<layer>.q` and so on for parts of a MergedLinear), what is trained
        whole, provenance, targets.

    Raises:
        AdapterFileError: what cannot be read, a factor that is missing or does not fit its layer, a
            MergedLinear whose parts are not told, or weights of adapted layers beside the factors;
            all faults are named.
    """
    path = Path(path)
    tensors, factors, rest = _load(path), dict[str, dict[str, Tensor]](), dict[str, Tensor]()
    for key, tensor in tensors.items():
        name, end = _split(key)
        if end in ("lora_A", "lora_B"):
            factors.setdefault(name, {})[end] = tensor
        else:
            rest[key] = tensor
    faults = [
        f"{key}   {int((~torch.isfinite(t)).sum())} of {t.numel()} values are NaN or infinite"
        for key, t in tensors.items()
        if not torch.isfinite(t).all()
    ]
    if not factors:
        faults.append("no key ends in lora_A")
    if merged := [
        n for n in factors if full_name(n, "weight") in rest or full_name(n, "conv.weight") in rest
    ]:
        faults.append(
            f"{merged[0]}   has its weight beside its factors, as {len(merged) - 1} more have: in eval mode loralib "
            "adds the change to the weight, and the file does not say whether it did; save "
            "lora.lora_state_dict(model)"
        )
    faults += [
        f"enable_lora: {pattern!r} matches none of the factors"
        for pattern in enable_lora or {}
        if not any(matches(pattern, name) for name in factors)
    ]
    deltas, parts = dict[str, LowRank](), dict[str, dict[str, int]]()
    for name, pair in {} if faults else factors.items():
        if len(pair) < 2:
            faults.append(f"{name}   {'lora_B' if 'lora_A' in pair else 'lora_A'} is missing")
            continue
        asked_for = next(
            (list(on) for pattern, on in (enable_lora or {}).items() if matches(pattern, name)),
            None,
        )
        try:
            made, rows = _deltas(name, pair["lora_A"], pair["lora_B"], alpha, model, asked_for)
        except AdapterFileError as error:
            faults += error.faults
            continue
        deltas |= made
        parts |= {name: rows} if rows else {}
    if faults:
        what = f"{path} cannot be read as loralib's: {plural(len(faults), 'fault')}."
        raise AdapterFileError(what, faults, "Nothing was loaded.")
    ranks = Counter(delta.rank for delta in deltas.values())
    spec = Spec(
        rank=ranks.most_common(1)[0][0],
        alpha=alpha,
        targets=tuple(deltas),
        parts=parts,
        **_rest(rest, factors),
        dtype=str(next(iter(deltas.values())).A.dtype).removeprefix("torch."),
    )
    spec = write_overrides(
        spec, {name: requested_settings(delta) for name, delta in deltas.items()}
    )
    return AdapterParts(
        spec,
        deltas,
        {key: nn.Parameter(tensor) for key, tensor in rest.items()},
        {},
        tuple(factors),
    )


def write(
    path: str | Path, spec: Spec, deltas: Mapping[str, LowRank], whole: Mapping[str, Tensor]
) -> Path:
    """Write what `lora.lora_state_dict` would: load it with lora_alpha = `spec.alpha`; another
    scale is multiplied into its B.

    Args:
        path: the file; `.pt` by custom.
        spec: whose alpha the layers are to be made with.
        deltas: by name.
        whole: what is trained whole, by name.

    Returns:
        The path.

    Raises:
        AdapterFileError: a change that is not plain low rank, a convolution's, or parts that are
            not equal blocks of rows of one rank; all are named and nothing is written.
    """
    path, layers, faults = Path(path), dict[str, list[LowRank]](), list[str]()
    for name, given in deltas.items():
        delta = given.to_low_rank() if isinstance(given, TiedLowRank) else given
        if type(delta) is not LowRank or delta.kernel or delta.A.ndim != 2:
            faults.append(
                f"{name}   {delta.name} of a {delta.kind} layer: loralib's factors mean another change there"
            )
        layers.setdefault(name.rpartition(".")[0] if delta.output_slice else name, []).append(delta)
    for name, found in layers.items():
        found.sort(key=lambda delta: delta.output_slice[2] if delta.output_slice else 0)
        if len({(d.rank, d.shape[0]) for d in found}) > 1 or any(
            d.output_slice
            and (
                d.output_slice[0] != 1
                or d.output_slice[2] % d.output_slice[3]
                or d.output_slice[1] % d.output_slice[3]
            )
            for d in found
        ):
            faults.append(
                f"{name}   its parts are not equal blocks of rows of one rank, as a MergedLinear has"
            )
    if faults:
        raise AdapterFileError(
            f"{plural(len(faults), 'layer')} cannot be written for loralib.",
            faults,
            "Nothing was written.",
        )
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in whole.items()}
    for name, found in layers.items():
        tensors[full_name(name, "lora_A")] = torch.cat([d.A.detach().cpu() for d in found])
        scaled = [d.B.detach().cpu() * (d.scale * d.rank / spec.alpha) for d in found]
        tensors[full_name(name, "lora_B")] = torch.cat(scaled)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as part:
        torch.save(tensors, part)
    return path


def _load(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file from elsewhere can make its reader raise anything
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise AdapterFileError(
            f"{path} is cut off, or holds something else than tensors: {reason}.",
            advice="Nothing was loaded.",
        ) from error
    found = next(
        (
            found[key]
            for key in WRAPPED
            if isinstance(found, dict) and isinstance(found.get(key), dict)
        ),
        found,
    )
    if not isinstance(found, dict) or not all(
        isinstance(k, str) and isinstance(t, Tensor) for k, t in found.items()
    ):
        raise AdapterFileError(
            f"{path} does not hold tensors by name.", advice="Nothing was loaded."
        )
    return found


def _split(key: str) -> tuple[str, str]:
    name, _, end = key.rpartition(".")
    return name, end


def _deltas(
    name: str, A: Tensor, B: Tensor, alpha: float, model: nn.Module | None, on: list[bool] | None
) -> tuple[dict[str, LowRank], dict[str, int]]:
    """Return the changes that one pair of factors is, and the rows of each part of a MergedLinear.

    Raises:
        AdapterFileError: they do not fit the layer; its faults say how.
    """
    layer, site = _layer(name, model)
    out, inputs = site.read(layer).shape if site else (B.shape[0], A.shape[-1])
    shapes = f"{name}   lora_A is {tuple(A.shape)}, lora_B is {tuple(B.shape)}"
    if A.ndim != 2 or B.ndim != 2 or not A.shape[0] or not B.shape[1] or A.shape[0] % B.shape[1]:
        raise _fault(f"{shapes}: matrices with one rank are needed")
    kernel = site.kernel(layer) if site else ()
    if site and kernel:
        if A.shape[0] % kernel[0] or B.shape[0] * A.shape[1] != out * inputs:
            raise _fault(
                f"{shapes}; the layer's matrix is {out} x {inputs} with a kernel of {kernel}"
            )
        return {
            name: _kernel(A, B, alpha * kernel[0] / A.shape[0], (out, inputs), site.kind, kernel)
        }, {}
    kind, count = site.kind if site else "linear", A.shape[0] // B.shape[1]
    size = B.shape[0] // count
    if on is None and count == 1 and size == out:
        if A.shape[1] != inputs:
            raise _fault(f"{shapes}; the layer is {inputs} -> {out}")
        return {name: LowRank(A, B, alpha=alpha, kind=kind)}, {}
    if on is None and site and out == size * count:
        on = [True] * count
    if on is None:
        what = f"{plural(count, 'part')} of a MergedLinear"
        raise _fault(
            f"{shapes}: {what}; enable_lora={{{name!r}: [True, False, True]}} or the like says which"
        )
    if (
        sum(on) != count
        or B.shape[0] % count
        or A.shape[1] != inputs
        or (site and out != size * len(on))
    ):
        raise _fault(
            f"{shapes}; enable_lora={on} does not fit"
            + (f" the layer, {inputs} -> {out}" if site else "")
        )
    words = ["q", "k", "v"] if len(on) == 3 else [f"part{i}" for i in range(len(on))]
    pairs = zip(
        (i for i, used in enumerate(on) if used), A.chunk(count), B.chunk(count), strict=True
    )
    rows = {word: (1, size * len(on), i * size, size) for i, word in enumerate(words)}
    made = {
        f"{name}.{words[i]}": LowRank(
            a.clone(), b.clone(), alpha=alpha, kind=kind, output_slice=rows[words[i]]
        )
        for i, a, b in pairs
    }
    return made, dict.fromkeys(words, size)


def _layer(name: str, model: nn.Module | None) -> tuple[Any, Site | None]:
    if model is None:
        return None, None
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        raise _fault(f"{name}   is not in {type(model).__name__}") from None
    if (site := site_of(layer)) is None:
        raise _fault(f"{name}   is a {type(layer).__name__}, which cannot be adapted")
    return layer, site


def _kernel(
    A: Tensor, B: Tensor, scale: float, shape: tuple[int, int], kind: str, kernel: tuple[int, ...]
) -> LowRank:
    """Return scale * B A, viewed as a kernel, as factors of that kernel's matrix (out, in / groups
    * kernel).
    """
    U, S, V = torch.linalg.svd((B.double() @ A.double()).view(shape), full_matrices=False)
    rank = max(1, int((1e-12 * S[0] < S).sum()))
    first, last = split_singular_values(U, S, V, rank)
    return LowRank(
        first.to(A.dtype), last.to(B.dtype), alpha=scale * rank, kind=kind, kernel=kernel
    )


def _rest(rest: Mapping[str, Tensor], factors: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a Spec says what stands beside the factors: biases, or modules that are trained
    whole.
    """
    biases = {key for key in rest if "bias" in _split(key)[1]}
    alone = {key for key in biases if full_name(_split(key)[0], "weight") not in rest}
    modules = tuple(dict.fromkeys(_split(key)[0] for key in rest if key not in alone))
    adapted = alone and all(_split(key)[0] in factors for key in alone)
    return {"bias": "adapted" if adapted else "all" if alone else "none", "full_modules": modules}


def _fault(text: str) -> AdapterFileError:
    return AdapterFileError("These factors do not fit.", [text])
