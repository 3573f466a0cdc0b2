"""The reports of a search for a rank, and the picture of its curve."""

from typing import TYPE_CHECKING, Any, NotRequired

from lorakit import plots
from lorakit.rank_search.advice import AdviceRow
from lorakit.rank_search.candidate import RankDetails, SearchFacts
from lorakit.rank_search.evidence import PointRow
from lorakit.rank_search.threshold import RankSuggestion

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class CurvePoint(PointRow, RankDetails):
    """One rank of the curve: its point, and its details."""


class SearchReport(SearchFacts):
    """Report of a search that trains: rank.json."""

    way: str
    curve: list[CurvePoint]
    recommended_rank: int
    reason: str
    metric_name: str
    higher_is_better: bool
    best_rank: int
    before: float | None
    ranks: dict[str, int]
    trainable_parameters: int
    model: str
    task: str
    rows: int
    rows_held_out: int
    lr: float
    base_fingerprint: str
    data_hash: str
    seed: int
    spec: dict[str, Any]
    settings: dict[str, Any]
    peak_memory_bytes: int
    versions: dict[str, str]
    output: str | None
    bytes: NotRequired[int]
    plot: NotRequired[str]


class ThresholdReport(RankSuggestion):
    """Report of a search by a threshold on singular values."""

    way: str
    threshold: float
    energy: str
    model: str
    adapter: str | None


class AdviceReport(AdviceRow):
    """Report of a search by rules of thumb."""

    way: str
    task: str
    rows: int
    model: str
    data: str | tuple[str, ...]


def draw_curve(report: SearchReport) -> "Figure":
    """Draw the curve of a report as one figure.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    name, curve, rank = report["metric_name"], report["curve"], report["recommended_rank"]
    held_out = [(point["rank"], point["metric"], point["low"], point["high"]) for point in curve]
    lines = {"held out, with its 95 % interval": held_out}
    trained = [
        (point["rank"], point["train"], point["train"], point["train"])
        for point in curve
        if "train" in point
    ]
    if trained:
        lines["rows trained on"] = trained
    title = f"Rank {rank}, the highest tried, is the best"
    if rank < curve[-1]["rank"]:
        title = f"Rank {rank} is enough"
    better = "more" if report["higher_is_better"] else "less"
    figure = plots.new_figure(7, 4.5)
    ax = figure.subplots()
    plots.draw_curves(
        ax,
        lines,
        title=f"{title} (dotted)",
        x="rank",
        y=f"{name} ({better} is better)",
        powers=True,
    )
    ax.axvline(rank, color="0.4", linestyle=":", linewidth=2, zorder=0)
    return figure
