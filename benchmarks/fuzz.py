"""Does a damaged or hostile adapter folder do anything but be refused?

Setting: adapter folders that lorakit and PEFT wrote (LoRA, DoRA, VeRA, LoHa, LoKr, AdaLoRA, packed
attentions, token rows, modules and biases that train in full, stacks of experts; safetensors and
pickles), each a few KiB. Each case changes one of them at one to three places: values, keys and
nesting of the config and of lorakit's entry in the header, the header of the tensors, keys, dtypes,
shapes and values of tensors, bits of the files, their lengths, their kind. Half of the changed
files of lorakit get a right hash again, as no accident gives it; the others, with one change, must
be refused or load as they were. A folder that loads is attached to its model, which runs once.

The law: nothing but an error of lorakit comes out, no load takes more than 5 s of CPU time, and
none takes more memory than twice the size of the folder and 50 MB. The memory is the largest
resident size of the process (`ru_maxrss`) after the load without its resident size before the load,
so that memory of safetensors and torch counts too. Chunks of cases run in processes of their own:
an end of the process (SIGSEGV) is a fault as well, and a large peak hides no later one for long.

Run: `python benchmarks/fuzz.py --cases 100000 --seed 0`; `--only N` runs one case and shows its
error; with `--quick` it runs 300 cases and writes nothing.
"""

import argparse
import copy
import json
import math
import pickle
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from beside_peft import write
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

import lorakit
from lorakit.errors import AdapterFileError, LorakitError
from lorakit.formats.peft.weights import SIGNATURE, sign

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
ENTRY = "lorakit"
SECONDS, MEMORY, SIZES = 5.0, 50 << 20, 2  # the limits: CPU time, bytes, times the folder's size
CHUNK = 2000
QUICK = 300


class Stuck(BaseException):
    """A load that takes much longer than it may."""


# --- folders that are changed --------------------------------------------------------------------


class Model(nn.Module):
    """A module of each kind that the adapters below are on."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 6)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.attention = nn.MultiheadAttention(6, 1, batch_first=True)
        self.conv = nn.Conv1d(6, 6, 3, padding=1)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 2)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.second(self.first(self.embed(ids)))
        x = self.norm(x + self.attention(x, x, x)[0])
        return self.head(self.conv(x.mT).mT)


OURS: dict[str, dict[str, Any]] = {
    "LoRA": {"targets": ["first", "second"]},
    "patterns": {
        "targets": ["first", "second", "conv"],
        "overrides": {"second": {"rank": 1, "alpha": 3.0}},
    },
    "DoRA": {"targets": ["first", "second"], "delta": "dora"},
    "VeRA": {"targets": ["first", "second"], "delta": "vera"},
    "LoHa": {"targets": ["first", "second"], "delta": "loha"},
    "LoKr": {"targets": ["first", "second"], "delta": "lokr"},
    "AdaLoRA": {"targets": ["first", "second"], "delta": "adalora"},
    "attention": {"targets": ["attention.*"]},
    "start": {"targets": ["first", "second"], "init": "pissa"},
    "full": {"targets": ["first"], "full_modules": ["head", "norm"], "bias": "all"},
}
LINEAR = {"r": 2, "target_modules": ["first", "second"]}
PEFTS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA": ("LoraConfig", LINEAR),
    "patterns": (
        "LoraConfig",
        {**LINEAR, "rank_pattern": {"first": 1, "^second$": 3}, "alpha_pattern": {"second": 5}},
    ),
    "rank-stabilised": ("LoraConfig", {**LINEAR, "use_rslora": True, "bias": "all"}),
    "DoRA": ("LoraConfig", {**LINEAR, "use_dora": True}),
    "tokens": ("LoraConfig", {**LINEAR, "trainable_token_indices": {"embed": [1, 3]}}),
    "embedding": ("LoraConfig", {"r": 2, "target_modules": ["embed", "conv"]}),
    "full": ("LoraConfig", {**LINEAR, "modules_to_save": ["head"]}),
    "regular": ("LoraConfig", {"r": 2, "target_modules": "(first|second)"}),
    "parameters": ("LoraConfig", {"r": 2, "target_parameters": ["first.weight"]}),
    "LoHa": ("LoHaConfig", LINEAR),
    "LoKr": ("LoKrConfig", LINEAR),
    "VeRA": ("VeraConfig", LINEAR),
    "AdaLoRA": (
        "AdaLoraConfig",
        {"target_modules": ["first", "second"], "init_r": 2, "total_step": 10},
    ),
}


def write_folders(place: Path) -> list[Path]:
    """Write the folders, and return them; names that begin with `lorakit` are those of lorakit."""
    folders = []
    torch.manual_seed(0)
    for name, fields in OURS.items():
        adapter = lorakit.attach(Model(), lorakit.Spec(**{"rank": 2, **fields}))
        for parameter in adapter.parameters():
            nn.init.normal_(parameter)
        folders.append(adapter.save(place / f"lorakit {name}"))
    import peft

    for name, (kind, fields) in PEFTS.items():
        wrapped = peft.get_peft_model(Model(), getattr(peft, kind)(**fields))
        folders.append(place / f"peft {name}")
        wrapped.save_pretrained(folders[-1], save_embedding_layers=False)
    for name in ("LoRA", "full"):
        folder = place / f"pickled {name}"
        shutil.copytree(place / f"peft {name}", folder)
        torch.save(load_file(folder / WEIGHTS), folder / PICKLE)
        (folder / WEIGHTS).unlink()
        folders.append(folder)
    for folder in folders:
        (folder / "README.md").unlink(missing_ok=True)
    return folders


@dataclass
class Folder:
    """An adapter folder in memory: its parts can be changed, and then its files.

    Attributes:
        config: values of the config.
        tensors: by key.
        metadata: texts of the header; None for a pickle.
        entry: lorakit's entry in the header; None if there is none.
        files: changes of finished files, in their order.
    """

    config: Any
    tensors: dict[str, Tensor]
    metadata: dict[str, Any] | None
    entry: Any
    files: list[Callable[[dict[str, bytes]], None]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "Folder":
        config = json.loads((path / CONFIG).read_text("utf-8"))
        if (path / PICKLE).exists():
            return cls(config, torch.load(path / PICKLE, weights_only=True), None, None)
        with safe_open(path / WEIGHTS, "pt") as file:
            metadata = dict(file.metadata() or {})
        entry = json.loads(metadata[ENTRY]) if ENTRY in metadata else None
        return cls(config, load_file(path / WEIGHTS), metadata, entry)

    def build(self, *, signed: bool) -> dict[str, bytes]:
        """Return the content of the files.

        Args:
            signed: True to give a file of lorakit the copy of the config and the hash that belong
                to what was changed.
        """
        config = json.dumps(self.config).encode("utf-8")
        if self.metadata is None:
            return {CONFIG: config, PICKLE: _pickle(self.tensors)}
        metadata = dict(self.metadata)
        if self.entry is not None:
            if signed and isinstance(self.entry, dict):
                self.entry["config"] = self.config
            metadata[ENTRY] = json.dumps(self.entry)
            if signed:
                metadata[SIGNATURE] = sign(metadata, self.tensors)
        return {CONFIG: config, WEIGHTS: save(self.tensors, metadata)}


def _pickle(content: object) -> bytes:
    import io

    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


# --- changes -------------------------------------------------------------------------------------


def nest(depth: int, *, objects: bool) -> object:
    value: object = 1
    for _ in range(depth):
        value = {"a": value} if objects else [value]
    return value


class Text(str):
    """Call the class to see whether unpickling runs code: it must not."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code of a pickle was run",)


def odd_value(draw: random.Random) -> Any:
    """Return a value of any JSON type, sensible or not."""
    values: list[Callable[[], Any]] = [
        lambda: draw.choice([None, True, False, "", "x", "first", [], {}, [None], [[]], {"": 0}]),
        lambda: draw.choice([0, 1, 2, 3, -1, 7, 255, 2**31, 2**63, 2**64, 10**20, -(10**400)]),
        lambda: draw.choice([0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, math.nan, math.inf, 10**400]),
        lambda: draw.choice(["(a+)+X", "(" * 50, "[", "\\", ".*", "^", "(?P<a>", "a{9999}", "*"]),
        lambda: draw.choice(["\0", "\ud800", "é" * 10, "../..", "/etc/passwd", "x" * 10_000]),
        lambda: draw.choice(["LORA", "VERA", "LOHA", "XLORA", "all", "none", "lora_only"]),
        lambda: nest(draw.choice([1, 5, 31, 33, 200]), objects=draw.random() < 0.5),
        lambda: [draw.choice(["first", "second", "head", 1, None])] * draw.choice([1, 2, 3000]),
        lambda: {f"{draw.choice('qva')}{i}": i for i in range(draw.choice([1, 3, 2000]))},
        lambda: {"first": odd_value(draw), "second": odd_value(draw)},
        lambda: [odd_value(draw) for _ in range(draw.randint(1, 3))],
    ]
    return draw.choice(values)()


def odd_text(draw: random.Random, text: str) -> str:
    """Return a text with a small change."""
    at = draw.randrange(len(text) + 1)
    changes = [
        text[:at] + text[at + 1 :],
        text[:at] + draw.choice("._/aBé\0\ud800") + text[at:],
        text.replace("lora_A", "lora_B"),
        text.replace("base_model.model.", draw.choice(["", "base_model.", "x."])),
        text.replace(".weight", draw.choice(["", ".bias", ".default.weight"])),
        f"{text}.{text}",
        draw.choice(["", ".", "first", "weight", "base_model.model.first", "x" * 5000]),
    ]
    return draw.choice(changes).encode("utf-8", "replace").decode("utf-8")


def change_value(draw: random.Random, value: Any) -> Any:
    """Return a JSON value with one change somewhere inside, in place where it can be."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        how = draw.random()
        if how < 0.6:
            value[key] = change_value(draw, value[key])
        elif how < 0.75:
            del value[key]
        elif how < 0.9:
            value[odd_text(draw, key)] = value.pop(key) if draw.random() < 0.5 else value[key]
        else:
            value[odd_text(draw, key)] = odd_value(draw)
        return value
    if isinstance(value, list) and value and draw.random() < 0.6:
        at = draw.randrange(len(value))
        value[at] = change_value(draw, value[at])
        return value
    if isinstance(value, str) and draw.random() < 0.3:
        return odd_text(draw, value)
    return odd_value(draw)


def change_config(draw: random.Random, folder: Folder) -> None:
    folder.config = change_value(draw, folder.config)


def change_entry(draw: random.Random, folder: Folder) -> None:
    if folder.entry is None:
        change_config(draw, folder)
    else:
        folder.entry = change_value(draw, folder.entry)


def change_metadata(draw: random.Random, folder: Folder) -> None:
    if folder.metadata is None:
        return change_config(draw, folder)
    changed = change_value(draw, dict(folder.metadata))
    if isinstance(changed, dict) and all(isinstance(one, str) for one in changed.values()):
        folder.metadata = {
            key: text.encode("utf-8", "replace").decode("utf-8") for key, text in changed.items()
        }
    else:
        folder.metadata = {}
        folder.entry = None
    return None


DTYPES = [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8]
DTYPES += [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64]


def change_tensor(draw: random.Random, folder: Folder) -> None:
    """Change key, dtype, shape or values of one tensor."""
    if not folder.tensors:
        return
    key = draw.choice(list(folder.tensors))
    tensor = folder.tensors[key]
    at = draw.randrange(max(tensor.numel(), 1))
    wrong = tensor.clone()
    if tensor.numel() and tensor.is_floating_point() and tensor.dtype.itemsize > 1:
        wrong.view(-1)[at] = draw.choice([math.nan, math.inf, 0.0, 1e30])
    changes: list[Callable[[], Tensor]] = [
        lambda: tensor.to(draw.choice(DTYPES)),
        lambda: tensor.mT.contiguous() if tensor.ndim > 1 else tensor[:-1].contiguous(),
        lambda: tensor[:1].clone() if tensor.ndim else tensor[None],
        lambda: tensor[None].repeat(*[draw.choice([0, 1, 2])] * (tensor.ndim + 1)),
        lambda: tensor.flatten().clone(),
        lambda: torch.zeros(draw.choice([(), (0,), (0, 6), (2, 0), (1,) * 12])),
        lambda: wrong,
    ]
    how = draw.random()
    if how < 0.6:
        folder.tensors[key] = draw.choice(changes)()
    elif how < 0.8:
        folder.tensors[odd_text(draw, key)] = folder.tensors.pop(key)
    elif how < 0.9:
        folder.tensors[odd_text(draw, key)] = tensor.clone()
    else:
        del folder.tensors[key]


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


def change_bytes(draw: random.Random, folder: Folder) -> None:
    """Change a finished file: bits, length, kind."""

    def change(files: dict[str, bytes]) -> None:
        name = draw.choice(list(files))
        content = files[name]
        at = draw.randrange(len(content) + 1)
        near = draw.randrange(min(len(content), 200) + 1)
        changes: list[Callable[[], bytes]] = [
            lambda: flip(content, at, draw),
            lambda: flip(content, near, draw),
            lambda: content[:at],
            lambda: content[at:],
            lambda: content[:at] + draw.randbytes(draw.choice([1, 8, 500])) + content[at:],
            lambda: content[:near] + content[near + draw.choice([1, 2, 8]) :],
            lambda: draw.randrange(2**64).to_bytes(8, "little") + content[8:],
            lambda: draw.choice([LFS, b"", b"{}", b"null", b"[" * 100_000, b'{"a":' * 50_000]),
            lambda: draw.choice([b"\xff\xfe", b"PK\3\4", b"\x80\x02.", b"<html>", b"\0" * 5000]),
            lambda: change_header(draw, content),
            lambda: pickle.dumps({"first": Text("x")}) if name == PICKLE else content + content,
        ]
        files[name] = draw.choice(changes)()
        if draw.random() < 0.05:
            files[draw.choice([CONFIG, WEIGHTS, PICKLE])] = files.pop(name)

    folder.files.append(change)


def flip(content: bytes, at: int, draw: random.Random) -> bytes:
    """Return the content with one bit flipped."""
    if not content:
        return content
    changed = bytearray(content)
    changed[at % len(content)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def change_header(draw: random.Random, content: bytes) -> bytes:
    """Return a safetensors file with a change in its header: dtype, shape, offsets."""
    size = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + size])
    except (ValueError, RecursionError):
        return content
    text = json.dumps(change_value(draw, header)).encode("utf-8", "replace")
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


CHANGES = (
    change_config,
    change_config,
    change_entry,
    change_entry,
    change_metadata,
    change_tensor,
    change_tensor,
    change_bytes,
)


# --- cases ---------------------------------------------------------------------------------------


def build_case(number: int, seed: int, folders: list[Path], place: Path) -> tuple[Path, bool, str]:
    """Write the changed folder of a case.

    Returns:
        The folder it was made from, whether a load has to give the same adapter as that, and the
        names of the changes.
    """
    draw = random.Random(f"{seed}-{number}")
    source = draw.choice(folders)
    folder = Folder.read(source)
    changes = draw.choices(CHANGES, k=draw.choice([1, 1, 1, 2, 3]))
    signed = draw.random() < 0.5
    for change in changes:
        change(draw, folder)
    files = folder.build(signed=signed)
    for change_file in folder.files:
        change_file(files)
    for name in (CONFIG, WEIGHTS, PICKLE):
        (place / name).unlink(missing_ok=True)
        if name in files:
            (place / name).write_bytes(files[name])
    # Two changes may take away all that says whose file it is.
    ours = source.name.startswith(ENTRY) and not signed and len(changes) == 1
    return source, ours, " + ".join(change.__name__ for change in changes)


def stop(number: int, frame: object) -> None:
    raise Stuck


def peak_memory() -> int:
    """Return the largest resident size of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def load(place: Path) -> lorakit.Adapter:
    """Load a folder, and raise RuntimeError if that takes too much."""
    size = sum(path.stat().st_size for path in place.iterdir())
    before, begun = psutil.Process().memory_info().rss, time.process_time()
    signal.setitimer(signal.ITIMER_PROF, 2 * SECONDS)
    try:
        return lorakit.Adapter.load(place)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        seconds, memory = time.process_time() - begun, peak_memory() - before
        if seconds > SECONDS:
            raise RuntimeError(f"{seconds:.1f} s of CPU time")
        if memory > SIZES * size + MEMORY:
            raise RuntimeError(f"{memory >> 20} MiB for {size:,} bytes")


def run_case(number: int, seed: int, folders: list[Path], place: Path, model: Model) -> str:
    """Run one case, and return what came of it; other errors than lorakit's are raised."""
    source, is_same, _ = build_case(number, seed, folders, place)
    try:
        adapter = load(place)
    except AdapterFileError:
        return "refused"
    if is_same and adapter.content_hash() != lorakit.Adapter.load(source).content_hash():
        raise RuntimeError("a changed file of lorakit loads with other values")
    try:
        lorakit.attach(model, adapter, any_base=True)
    except LorakitError:
        return "loaded, and does not fit"
    try:
        model(torch.arange(4)[None])
    finally:
        lorakit.detach(model)
    return "loaded and attached"


def run_chunk(numbers: range, seed: int, source: Path) -> tuple[Counter[str], list[str]]:
    """Run cases, and return the number of each outcome and the faults."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, stop)
    counts: Counter[str] = Counter()
    faults = []
    folders = sorted(path for path in source.iterdir() if path.is_dir())
    model = Model()
    with TemporaryDirectory() as place:
        for number in numbers:
            try:
                counts[run_case(number, seed, folders, Path(place), model)] += 1
            except (Exception, Stuck) as error:
                counts["fault"] += 1
                faults.append(f"case {number}: {type(error).__name__}: {str(error)[:300]}")
                model = Model()
    return counts, faults


def run(cases: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Run all cases, each chunk in a process of its own."""
    counts: Counter[str] = Counter()
    faults: list[str] = []
    with TemporaryDirectory() as place:
        write_folders(Path(place))
        for first in range(0, cases, CHUNK):
            numbers = range(first, min(first + CHUNK, cases))
            try:
                with ProcessPoolExecutor(1) as pool:
                    found, wrong = pool.submit(run_chunk, numbers, seed, Path(place)).result()
            except BrokenProcessPool:
                found, wrong = Counter({"fault": 1}), [f"{numbers}: the process ended"]
            counts += found
            faults += wrong
            for fault in wrong:
                print(fault, flush=True)
    return counts, faults


def show_case(number: int, seed: int) -> None:
    """Run one case here, and print what it changes and what comes of it."""
    with TemporaryDirectory() as place:
        folders, target = write_folders(Path(place)), Path(place, "case")
        target.mkdir()
        source, _, changes = build_case(number, seed, sorted(folders), target)
        print(f"{source.name}: {changes}")
        try:
            print(run_case(number, seed, sorted(folders), target, copy.deepcopy(Model())))
            print(lorakit.Adapter.load(target))
        except Exception:
            traceback.print_exc()


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=100_000, help="number of cases")
    parser.add_argument("--seed", type=int, default=0, help="cases of another seed are others")
    parser.add_argument("--only", type=int, help="run the case of this number alone")
    parser.add_argument("--quick", action="store_true", help="few cases; writes nothing")
    args = parser.parse_args(words)
    if args.only is not None:
        show_case(args.only, args.seed)
        return 0
    cases = QUICK if args.quick else args.cases
    begun = time.process_time()
    counts, faults = run(cases, args.seed)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = time.process_time() - begun + children.ru_utime + children.ru_stime
    runs = [{"side": name, "cases": count} for name, count in sorted(counts.items())]
    criteria = [
        {
            "text": "nothing but a refusal or an adapter comes out, within the limits: no fault",
            "met": not faults,
            "measured": str(len(faults)),
        }
    ]
    write(
        "fuzz",
        __doc__ or "",
        quick=args.quick or cases < 100_000,
        runs=runs,
        criteria=criteria,
        one_row_a_run=True,
        measures={"cases": ("cases", ",")},
        cpu_seconds=round(seconds),
        seed=args.seed,
        faults=faults[:50],
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
