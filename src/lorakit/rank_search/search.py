"""`lorakit rank`: check the request, search for a rank in one of the ways, write the result."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lorakit import plots
from lorakit.adapter import Adapter
from lorakit.analysis.spectra import factors_of, is_plain
from lorakit.data.rows import read_for
from lorakit.errors import NOT_STARTED, SpecError
from lorakit.files import folder_bytes, write_json
from lorakit.inject.full_parameters import find_full_modules
from lorakit.inject.places import find_places
from lorakit.inject.targets import select
from lorakit.linalg import singular_values
from lorakit.models.load import load
from lorakit.models.open import find_labels
from lorakit.plan.devices import this_machine
from lorakit.plan.meta_model import load_meta_model
from lorakit.plan.report import tokenise_rows
from lorakit.rank_search.advice import advise
from lorakit.rank_search.candidate import SearchResult, check_searchable, deciding_metric
from lorakit.rank_search.config import BY_LAYER, TRAINING, UNUSED, RankSearchSpec
from lorakit.rank_search.evidence import HIGHER_IS_BETTER
from lorakit.rank_search.grid import search_grid
from lorakit.rank_search.grow import grow
from lorakit.rank_search.output import RUN, begin_search, check_output
from lorakit.rank_search.report import (
    AdviceReport,
    CurvePoint,
    SearchReport,
    ThresholdReport,
    draw_curve,
)
from lorakit.rank_search.threshold import suggest_ranks
from lorakit.rank_search.truncate import truncate
from lorakit.spec import Spec
from lorakit.tasks.find import find_task
from lorakit.tasks.rows import choose_task, resolve_task
from lorakit.text import plural
from lorakit.train.config import TrainSpec
from lorakit.train.log import Say
from lorakit.train.prepare import PreparedRun, prepare_run
from lorakit.train.report import peak_memory, versions

REPORT = "rank.json"
SEARCHES = {"truncate": truncate, "grid": search_grid, "grow": grow}
BASE_BYTES = {"float32": 4, "auto": 4}  # of a value of the base, by dtype; others have 2


def search_rank(
    values: Mapping[str, Any],
    spec: Spec,
    search: RankSearchSpec,
    say: Say = lambda message: None,
) -> SearchReport | ThresholdReport | AdviceReport:
    """Search for a rank, and return the report that `rank --json` prints.

    Args:
        values: fields of TrainSpec; without `output` nothing is kept but the report.
        spec: spec of the adapter; its rank is not used, that of `search` is.
        search: settings of the search.
        say: called with each message for the user.

    Raises:
        LorakitError: a request that cannot be met, before the first step; TrainingError while
            running.
    """
    check_request(values, spec, search)
    if search.plot:
        plots.check_path(search.plot)
    if search.way == "threshold":
        return search_by_threshold(
            str(values["model"]),
            spec,
            search,
            trust_remote_code=bool(values.get("trust_remote_code")),
        )
    if search.way == "advice":
        return search_by_advice(TrainSpec(**{**values, "output": "not written"}), spec)
    output = Path(values["output"]) if values.get("output") else None
    if output:
        check_output(output)
    with _working_folder(output) as folder:
        settings = TrainSpec(**{**values, "output": str(folder / RUN)})
        return _search_by_training(settings, spec, search, output, say)


def check_request(values: Mapping[str, Any], spec: Spec, search: RankSearchSpec) -> None:
    """Check that the settings of run, adapter and search go together.

    Raises:
        SpecError: settings that are missing, or that a search does not take; all are named.
    """
    needed = ["model"] if search.way == "threshold" else ["model", "data"]
    faults = [f"{name}: is needed" for name in needed if not values.get(name)]
    faults += [f"{name}: {why}" for name, why in UNUSED.items() if values.get(name)]
    for pattern, change in spec.overrides.items():
        faults += [
            f"overrides[{pattern!r}].{name}: {BY_LAYER}"
            for name in ("rank", "pairs")
            if name in change
        ]
    if search.way not in TRAINING and values.get("output"):
        faults.append(f"output: --way {search.way} makes no adapter, so there is nothing to write")
    if faults:
        raise SpecError(f"{plural(len(faults), 'fault')} in the request.", faults, NOT_STARTED)


def _search_by_training(
    settings: TrainSpec,
    spec: Spec,
    search: RankSearchSpec,
    output: Path | None,
    say: Say,
) -> SearchReport:
    """Prepare a run, search with it, and write the adapter and the report."""
    first = search.rank if search.way == "truncate" else search.ranks[0]
    prepared = prepare_run(settings, replace(spec, rank=first), say)
    job = prepared.job
    check_searchable(job, job.adapter.spec, needs_plain=search.way != "grid")
    metric = deciding_metric(search.metric, job)
    with begin_search(Path(settings.output)):
        before = job.evaluate(job.eval_examples).metrics
        result = SEARCHES[search.way](job, search, say)
        report = _make_report(search, prepared, result, before.get(metric), output)
        if output:
            _write(result, report, output)
    if search.plot:
        plots.save_figure(draw_curve(report), search.plot)
        report["plot"] = search.plot
    return report


def _make_report(
    search: RankSearchSpec,
    prepared: PreparedRun,
    result: SearchResult,
    before: float | None,
    output: Path | None,
) -> SearchReport:
    settings, facts = prepared.job.settings, prepared.facts
    details = result.details
    curve: list[CurvePoint] = [
        {**point.to_dict(), **details[point.rank]} for point in result.choice.points
    ]
    return {
        "way": search.way,
        "curve": curve,
        "recommended_rank": result.choice.rank,
        "reason": result.choice.reason,
        "metric_name": result.metric,
        "higher_is_better": result.metric in HIGHER_IS_BETTER,
        "best_rank": result.choice.best,
        "before": before,
        "ranks": {name: delta.rank for name, delta in result.adapter.deltas.items()},
        "trainable_parameters": result.adapter.parameters_count,
        **result.facts,
        "model": facts["model"],
        "task": facts["task"],
        "rows": facts["rows"],
        "rows_held_out": facts["rows_held_out"],
        "lr": facts["lr"],
        "base_fingerprint": facts["base_fingerprint"],
        "data_hash": facts["data_hash"],
        "seed": settings.seed,
        "spec": result.adapter.spec.to_dict(),
        "settings": settings.to_dict(),
        "peak_memory_bytes": peak_memory(),
        "versions": versions(),
        "output": str(output) if output else None,
    }


def _write(result: SearchResult, report: SearchReport, output: Path) -> None:
    """Write the adapter, and the report with the size of the files before it."""
    facts = {
        "data_hash": report["data_hash"],
        "seed": report["seed"],
        "versions": report["versions"],
        "recommended_rank": report["recommended_rank"],
        "reason": report["reason"],
    }
    for key, value in facts.items():
        result.adapter.provenance.setdefault(key, value)
    result.adapter.save(output)
    report["bytes"] = folder_bytes(output)
    write_json(output / REPORT, report)


def search_by_threshold(
    model: str, spec: Spec, search: RankSearchSpec, *, trust_remote_code: bool = False
) -> ThresholdReport:
    """Return the ranks that a threshold on singular values suggests.

    With an adapter they are those of its changes; without, of the matrices of the model alone.

    Raises:
        SpecError: an adapter whose change is no product of factors.
        LorakitError: a model or an adapter that cannot be read, or that do not fit.
    """
    adapter = Adapter.load(search.adapter) if search.adapter else None
    task = resolve_task(adapter, model, trust_remote_code=trust_remote_code)
    labels = find_labels(model, adapter, task, trust_remote_code=trust_remote_code)
    base = load(
        model, task, labels=labels, dtype="float32", trust_remote_code=trust_remote_code
    ).model
    changes: dict[str, Tensor] = {}
    if adapter is None:
        places = select(base, spec.targets, spec.exclude, parts=spec.parts)
    else:
        known = find_places(base, adapter.spec.parts)
        places = {name: known[name] for name in adapter.deltas if name in known}
    matrices = {name: place.matrix for name, place in places.items()}
    if adapter is not None:
        for name, delta in adapter.deltas.items():
            M = None if is_plain(delta) else matrices.get(name)
            changes[name] = singular_values(*factors_of(name, delta, M))
    flat = {name: M for name, M in matrices.items() if M.ndim == 2}
    return {
        "way": search.way,
        **suggest_ranks(flat, changes, search.threshold, search.energy),
        "threshold": search.threshold,
        "energy": search.energy,
        "model": model,
        "adapter": search.adapter,
    }


def search_by_advice(settings: TrainSpec, spec: Spec) -> AdviceReport:
    """Return a rank to begin with, from shapes, rows and memory; no weights are loaded.

    Raises:
        LorakitError: data or a model that cannot be read.
    """
    rows = read_for(settings, settings.data)
    task = choose_task(
        rows, settings.task, settings.model, trust_remote_code=settings.trust_remote_code
    )
    labels = find_task(task).list_classes(rows)
    base = load_meta_model(
        settings.model,
        task,
        labels=len(labels) or 2,
        trust_remote_code=settings.trust_remote_code,
    )
    examples = tokenise_rows(
        base, rows, settings.max_length, labels, settings.loss_on, settings.template
    )
    new_modules = tuple(find_full_modules(base.model, base.new_modules))
    places = select(base.model, spec.targets, spec.exclude, without=new_modules)
    values = sum(parameter.numel() for parameter in base.model.parameters())
    machine = this_machine(cpu=settings.device == "cpu")
    free = machine.usable - BASE_BYTES.get(settings.base_dtype, 2) * values
    advice = advise(
        task,
        len(rows),
        [place.shape for place in places.values()],
        tokens=sum(example.trained for example in examples),
        memory=max(0, free // 2),
    )
    return {
        "way": "advice",
        **advice.to_dict(),
        "task": task,
        "rows": len(rows),
        "model": settings.model,
        "data": settings.data,
    }


@contextmanager
def _working_folder(output: Path | None) -> Iterator[Path]:
    """Yield the folder that the run writes to: the output, or a temporary one."""
    if output:
        yield output
        return
    with tempfile.TemporaryDirectory(prefix="lorakit-rank-") as folder:
        yield Path(folder)
