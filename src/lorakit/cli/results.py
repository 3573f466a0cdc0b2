"""Types of the results of commands, as `--json` prints them. For type checkers only."""

from typing import NotRequired, TypedDict

from lorakit.algebra.outcome import OutcomeRow
from lorakit.analysis.attention import AttentionReport
from lorakit.analysis.report import AdapterSummary, ModuleReport, PairReport
from lorakit.data.templates import Turn
from lorakit.rank_search.report import AdviceReport, SearchReport, ThresholdReport


class EvalResult(TypedDict):
    """Result of `eval`; metrics of other tasks are missing, correlations of a constant are None."""

    loss: NotRequired[float]
    perplexity: NotRequired[float]
    tokens: NotRequired[int]
    accuracy: NotRequired[float]
    margin: NotRequired[float | None]
    f1: NotRequired[float]
    precision: NotRequired[float]
    recall: NotRequired[float]
    matthews: NotRequired[float]
    pearson: NotRequired[float | None]
    spearman: NotRequired[float | None]
    task: str
    rows: int
    rows_cut: int
    model: str
    adapter: str | None
    predictions: NotRequired[str]
    bleu: NotRequired[float]
    chrf: NotRequired[float]
    rouge_l: NotRequired[float]
    prompts: NotRequired[int]
    decoding: NotRequired[dict[str, object]]


class Answer(TypedDict):
    """One prompt and its continuation."""

    prompt: str | list[Turn]
    text: str


class GenerateResult(TypedDict):
    """Result of `generate`."""

    answers: list[Answer]
    output: str | None
    model: str
    adapter: str | None


class ChatResult(TypedDict):
    """Result of `chat`: the conversation as rows to train on, and the folders of the adapters."""

    rows: list[dict[str, object]]
    model: str
    adapters: dict[str, str]


class Target(TypedDict):
    """One layer of a model that can be adapted; the shape is (out, in)."""

    name: str
    kind: str
    shape: list[int]
    role: str | None


TargetsResult = TypedDict("TargetsResult", {"targets": list[Target], "model": str, "class": str})


class AttentionResult(AttentionReport):
    """Attention to one text, without and with the adapter."""

    text: str


class _InspectResult(AdapterSummary):
    modules: list[ModuleReport]
    trainable_parameters: int
    spec: dict[str, object]
    whole: dict[str, list[int]]
    provenance: dict[str, object]
    content_hash: str
    adapter: str
    pairs: NotRequired[list[PairReport]]
    attention: NotRequired[AttentionResult]
    plot: NotRequired[str]


_WithSecond = TypedDict("_WithSecond", {"with": NotRequired[str]})


class InspectResult(_InspectResult, _WithSecond):
    """Result of `inspect` of an adapter; `with` names the second adapter of `pairs`."""


class AdapterResult(OutcomeRow):
    """Result of a command that writes a new adapter: its error, its bytes on disk, its folder."""

    bytes: int
    output: str


class ResizeResult(AdapterResult):
    """Result of `resize`."""

    ranks_before: dict[str, int]
    parameters_before: int


class CombineResult(AdapterResult):
    """Result of `combine`; `of` has each folder with its weight."""

    method: str
    of: list[tuple[str, float]]


class Comparison(TypedDict):
    """Base + adapter, and the base alone, compared with the tuned model."""

    kl: float
    top1_agreement: float
    base_kl: float


class ExtractResult(AdapterResult, Comparison):
    """Result of `extract`."""


class ExplainResult(TypedDict):
    """Result of `explain`: the numbers of each topic, with its title."""

    topics: dict[str, dict[str, object]]
    plot: NotRequired[str]


RankResult = SearchReport | ThresholdReport | AdviceReport
