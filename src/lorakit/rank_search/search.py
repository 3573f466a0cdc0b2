"""`lorakit rank`: everything is checked, a rank is looked for in the way that was asked, and what
was found is written.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lorakit import plots
from lorakit.adapter import Adapter
from lorakit.analysis.spectra import factors_of, is_plain
from lorakit.data.encode import infer_task, list_labels
from lorakit.data.rows import read_rows
from lorakit.errors import OutputError, SpecError
from lorakit.evaluate.score import evaluate
from lorakit.inject.full_parameters import find_full_modules
from lorakit.inject.places import find_places
from lorakit.inject.targets import select
from lorakit.linalg import singular_values
from lorakit.models.load import load
from lorakit.plan.devices import this_machine
from lorakit.plan.meta_model import load_meta_model
from lorakit.plan.report import tokenise_rows
from lorakit.rank_search.advice import advise
from lorakit.rank_search.candidate import SearchResult, check_searchable, deciding_metric
from lorakit.rank_search.config import TRAINING, RankSearchSpec
from lorakit.rank_search.evidence import HIGHER_IS_BETTER
from lorakit.rank_search.grid import search_grid
from lorakit.rank_search.grow import grow
from lorakit.rank_search.threshold import suggest_ranks
from lorakit.rank_search.truncate import truncate
from lorakit.spec import Spec
from lorakit.text import plural
from lorakit.train.config import TrainSpec
from lorakit.train.prepare import prepare_run
from lorakit.train.report import peak_memory, versions

REPORT, RUN = "rank.json", "run"
BEGINS, FINDS = "a search for a rank begins a run", "ranks by layer are what the search finds"
UNUSED = {
    "resume": BEGINS,
    "overwrite": BEGINS,
    "ranks": FINDS,
    "rank_budget": FINDS,
}  # of a run, not of a search


def search_rank(
    values: Mapping[str, Any],
    spec: Spec,
    asked: RankSearchSpec,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Look for a rank, and return what `rank --json` prints.

    Args:
        values: fields of TrainSpec; without `output` nothing is kept but what is returned.
        spec: of the adapter; its rank is not used, that of `asked` is.
        asked: how it is looked for.
        say: called with each line that a person would want to read.

    Raises:
        LorakitError: anything that cannot be done as asked, before a step is taken; TrainingError
            while running.
    """
    needed = ("model", "data") if asked.way in (*TRAINING, "advice") else ("model",)
    faults = [f"{name}: is needed" for name in needed if not values.get(name)]
    faults += [f"{name}: {why}" for name, why in UNUSED.items() if values.get(name)]
    faults += [
        f"overrides[{pattern!r}].rank: {FINDS}"
        for pattern, found in spec.overrides.items()
        if "rank" in found
    ]
    if asked.way not in TRAINING and values.get("output"):
        faults.append(f"output: --way {asked.way} makes no adapter, so there is nothing to write")
    if faults:
        raise SpecError(
            f"{plural(len(faults), 'fault')} in what is asked.", faults, "Nothing was started."
        )
    if asked.plot:
        plots.check(asked.plot)
    if asked.way == "threshold":
        return {"way": asked.way, **threshold(str(values["model"]), spec, asked)}
    if asked.way == "advice":
        settings = TrainSpec(**{**values, "output": "not written"})
        return {"way": asked.way, **advice(settings, spec)}
    output = _fresh(values.get("output"))
    with _place(output) as folder:
        settings = TrainSpec(**{**values, "output": str(folder / RUN)})
        report = _trained(settings, spec, asked, output, say)
    return report


def _trained(
    settings: TrainSpec,
    spec: Spec,
    asked: RankSearchSpec,
    output: Path | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    first = asked.rank if asked.way == "truncate" else asked.ranks[0]
    ready = prepare_run(settings, replace(spec, rank=first), say)
    job = ready.job
    check_searchable(job, job.adapter.spec, plain=asked.way != "grid")
    metric = deciding_metric(asked.metric, job)
    Path(settings.output).mkdir(parents=True, exist_ok=True)
    score: dict[str, Any] = {
        "pad": job.pad,
        "batch_size": settings.eval_batch_size,
        "classes": job.classes,
    }
    before = evaluate(job.model, job.eval_examples, job.task, **score).metrics
    found = {"truncate": truncate, "grid": search_grid, "grow": grow}[asked.way](job, asked, say)
    extra = found.facts.pop("extra")
    curve = [{**asdict(point), **extra[point.rank]} for point in found.choice.points]
    facts = {
        key: ready.facts[key]
        for key in ("model", "task", "rows", "rows_held_out", "lr", "base_fingerprint", "data_hash")
    }
    report = {
        "way": asked.way,
        "curve": curve,
        "recommended_rank": found.choice.rank,
        "reason": found.choice.reason,
        "metric_name": metric,
        "higher_is_better": metric in HIGHER_IS_BETTER,
        "best_rank": found.choice.best,
        "before": before.get(metric),
        "ranks": {name: delta.rank for name, delta in found.adapter.deltas.items()},
        "trainable_parameters": found.adapter.parameters_count,
        **found.facts,
        **facts,
        "seed": settings.seed,
        "spec": found.adapter.spec.to_dict(),
        "settings": settings.to_dict(),
        "peak_memory_bytes": peak_memory(),
        "versions": versions(),
        "output": str(output) if output else None,
    }
    if output:
        _write(found, report, output)
    if asked.plot:
        plots.save(picture(report), asked.plot)
        report["plot"] = asked.plot
    return report


def picture(report: Mapping[str, Any]) -> Any:
    """Return the curve of a report as one figure.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    name, curve = report["metric_name"], report["curve"]
    lines = {
        "held out, with its 95 % interval": [
            (p["rank"], p["metric"], p["low"], p["high"]) for p in curve
        ]
    }
    if "train" in curve[0]:
        lines["rows trained on"] = [(p["rank"], p["train"], p["train"], p["train"]) for p in curve]
    drawn = plots.figure(7, 4.5)
    ax = drawn.subplots()
    rank, better = report["recommended_rank"], "more" if report["higher_is_better"] else "less"
    title = (
        f"Rank {rank} is enough"
        if rank < curve[-1]["rank"]
        else f"Rank {rank}, the highest tried, is the best"
    )
    plots.curves(
        ax,
        lines,
        title=f"{title} (dotted)",
        x="rank",
        y=f"{name} ({better} is better)",
        powers=True,
    )
    ax.axvline(rank, color="0.4", linestyle=":", linewidth=2, zorder=0)
    return drawn


def _write(found: SearchResult, report: dict[str, Any], output: Path) -> None:
    keep = {
        key: report[key] for key in ("data_hash", "seed", "versions", "recommended_rank", "reason")
    }
    found.adapter.provenance |= {
        key: value for key, value in keep.items() if key not in found.adapter.provenance
    }
    found.adapter.save(output)
    report["bytes"] = sum(p.stat().st_size for p in output.iterdir() if p.is_file())
    (output / REPORT).write_text(json.dumps(report, indent=2) + "\n", "utf-8")


def threshold(model: str, spec: Spec, asked: RankSearchSpec) -> dict[str, Any]:
    """Return what a threshold on singular values suggests for a model, and for what an adapter
    changed in it.

    Raises:
        SpecError: an adapter whose change is no product of factors.
        LorakitError: a model or an adapter that cannot be read, or that do not fit.
    """
    adapter = Adapter.load(asked.adapter) if asked.adapter else None
    base = load(
        model,
        "causal-lm" if adapter is None else adapter.provenance.get("task", "causal-lm"),
        labels=list((adapter.provenance.get("labels") if adapter else None) or ()),
        dtype="float32",
    ).model
    known = find_places(base, spec.parts if adapter is None else adapter.spec.parts)
    chosen = (
        select(base, spec.targets, spec.exclude, parts=spec.parts)
        if adapter is None
        else {name: known[name] for name in adapter.deltas if name in known}
    )
    changes = {}
    for name, delta in (adapter.deltas if adapter else {}).items():
        W = known[name].site.read(known[name].layer) if name in known else None
        changes[name] = singular_values(*factors_of(name, delta, None if is_plain(delta) else W))
    matrices = {name: place.site.read(place.layer) for name, place in chosen.items()}
    flat = {name: W for name, W in matrices.items() if W.ndim == 2}
    return {
        **suggest_ranks(flat, changes, asked.threshold, asked.energy),
        "threshold": asked.threshold,
        "energy": asked.energy,
        "model": model,
        "adapter": asked.adapter,
    }


def advice(settings: TrainSpec, spec: Spec) -> dict[str, Any]:
    """Return a rank to begin with, from shapes, rows and this machine's memory; no weights are
    loaded.

    Raises:
        LorakitError: data or a model that cannot be read.
    """
    rows = read_rows(settings.data, columns=settings.columns, quotes=settings.quotes)
    task = infer_task(rows, settings.task)
    labels = list_labels(rows) if task == "classify" else []
    base = load_meta_model(settings.model, task, labels=len(labels) or 2)
    examples = tokenise_rows(base, rows, settings.max_length, labels, settings.loss_on)
    chosen = select(
        base.model,
        spec.targets,
        spec.exclude,
        without=tuple(find_full_modules(base.model, base.new_modules)),
    )
    bytes_of = {"float32": 4, "auto": 4}.get(settings.base_dtype, 2)
    free = this_machine(cpu=settings.device == "cpu").usable - bytes_of * sum(
        p.numel() for p in base.model.parameters()
    )
    told = advise(
        task,
        len(rows),
        [place.shape for place in chosen.values()],
        tokens=sum(e.trained for e in examples),
        memory=max(0, free // 2),
    )
    return {
        **told.to_dict(),
        "task": task,
        "rows": len(rows),
        "model": settings.model,
        "data": settings.data,
    }


def _fresh(output: Any) -> Path | None:
    if not output:
        return None
    path = Path(output)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputError(
            f"{path} {'is not empty' if path.is_dir() else 'is a file'}.",
            advice="Name a new folder. Nothing was started.",
        )
    return path


@contextmanager
def _place(output: Path | None) -> Iterator[Path]:
    """Yield where the run may write: the output, or a folder that goes away."""
    if output:
        yield output
        return
    with tempfile.TemporaryDirectory(prefix="lorakit-rank-") as folder:
        yield Path(folder)
