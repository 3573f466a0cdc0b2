"""`lorakit explain`."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorakit.cli import flags
from lorakit.errors import MissingExtra, SpecError
from lorakit.explain import TOPICS, load_topic
from lorakit.spec import option
from lorakit.text import near_misses

if TYPE_CHECKING:
    from lorakit.cli.results import ExplainResult


@dataclass(frozen=True, kw_only=True)
class ExplainRequest:
    """The picture to draw."""

    plot: str | None = option(
        None, "write the picture of one topic to this file (.png, .svg, .pdf)", type=str
    )


def add_flags(parser: argparse.ArgumentParser) -> None:
    about = "; ".join(f"{name} ({title})" for name, title in TOPICS.items())
    parser.add_argument(
        "topics",
        metavar="TOPIC",
        nargs="*",
        help=f"any of: {about} (default: all)",
    )
    flags.add_fields(parser, ExplainRequest, "a picture")


def run(args: argparse.Namespace) -> "ExplainResult":
    (values,) = flags.read_settings(args, ExplainRequest)
    request = ExplainRequest(**values)
    _check_topics(args.topics)
    if request.plot:
        _check_picture(args.topics, request.plot)
    found = {}
    for name in args.topics or TOPICS:
        numbers = _numbers(name, by_name=bool(args.topics))
        found[name] = {"title": TOPICS[name], **numbers}
    result: ExplainResult = {"topics": found}
    if request.plot:
        from lorakit import plots

        (name,) = args.topics
        figure = load_topic(name).draw(found[name])
        result["plot"] = str(plots.save_figure(figure, request.plot))
    return result


def _check_topics(names: Sequence[str]) -> None:
    faults = []
    for name in names:
        if name not in TOPICS:
            faults.append(f"{name!r}   {near_misses(name, TOPICS)}".rstrip())
    if faults:
        raise SpecError("There is no such topic.", faults, f"Topics: {', '.join(TOPICS)}.")


def _numbers(name: str, *, by_name: bool) -> dict[str, object]:
    """Return a topic's numbers; among all topics, one without its extra says so in its place."""
    try:
        return dict(load_topic(name).numbers())
    except MissingExtra as error:
        if by_name:
            raise
        return {"left_out": str(error)}


def _check_picture(names: Sequence[str], path: str) -> None:
    from lorakit import plots

    with_picture = [name for name in TOPICS if "draw" in vars(load_topic(name))]
    if len(names) != 1 or names[0] not in with_picture:
        raise SpecError(
            f"A picture is of one topic; there is none of {', '.join(names) or 'all'}.",
            advice=f"Topics with a picture: {', '.join(with_picture)}. Nothing was written.",
        )
    plots.check_path(path)


def show(result: "ExplainResult") -> None:
    topics = result["topics"]
    if len(topics) == len(TOPICS):
        for name, title in TOPICS.items():
            print(f"  {name:<15} {title}")
        print()
    for name, numbers in topics.items():
        text = numbers.get("left_out") or load_topic(name).describe(numbers)
        head = f"{name}: {numbers['title']}"
        print(f"{head}\n{'─' * len(head)}\n\n{text}\n")
    picture = result.get("plot")
    if picture:
        print(f"picture: {picture}")
