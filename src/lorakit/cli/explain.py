"""`lorakit explain`."""

import argparse
from dataclasses import dataclass
from typing import Any

from lorakit.cli import flags
from lorakit.errors import MissingExtra, SpecError
from lorakit.explain import TOPICS, topic
from lorakit.spec import option
from lorakit.text import near_misses


@dataclass(frozen=True, kw_only=True)
class Explaining:
    """What is drawn."""

    plot: str | None = option(
        None, "a file for the picture of one topic (.png, .svg, .pdf)", type=str
    )


def add(parser: argparse.ArgumentParser) -> None:
    about = "; ".join(f"{name} ({title})" for name, title in TOPICS.items())
    parser.add_argument(
        "topics",
        metavar="TOPIC",
        nargs="*",
        help=f"one or several of: {about}; all where none is named",
    )
    flags.add_fields(parser, Explaining, "what is drawn")


def main(args: argparse.Namespace) -> dict[str, Any]:
    asked = Explaining(**flags.values(args, Explaining)[0])
    faults = [
        f"{name!r}   {near_misses(name, TOPICS)}".rstrip()
        for name in args.topics
        if name not in TOPICS
    ]
    if faults:
        raise SpecError(
            "Nothing is explained under this name.", faults, f"Topics: {', '.join(TOPICS)}."
        )
    if asked.plot:
        _check(args.topics, asked.plot)
    found = {
        name: {"title": TOPICS[name], **_numbers(name, bool(args.topics))}
        for name in args.topics or TOPICS
    }
    told: dict[str, Any] = {"topics": found}
    if asked.plot:
        from lorakit import plots

        (name,) = args.topics
        told["plot"] = str(plots.save_figure(topic(name).draw(found[name]), asked.plot))
    return told


def _numbers(name: str, wanted: bool) -> dict[str, Any]:
    """Return a topic's numbers; where all topics are shown, one that needs what is not installed
    says so in its place.
    """
    try:
        return topic(name).numbers()
    except MissingExtra as error:
        if wanted:
            raise
        return {"left_out": str(error)}


def _check(names: list[str], path: str) -> None:
    from lorakit import plots

    drawn = [name for name in TOPICS if "draw" in vars(topic(name))]
    if len(names) != 1 or names[0] not in drawn:
        raise SpecError(
            f"A picture is of one topic, and of {', '.join(names) or 'all'} there is none.",
            advice=f"Topics with a picture: {', '.join(drawn)}. Nothing was written.",
        )
    plots.check_path(path)


def show(result: dict[str, Any]) -> None:
    topics = result["topics"]
    if len(topics) == len(TOPICS):
        print("\n".join(f"  {name:<15} {title}" for name, title in TOPICS.items()), end="\n\n")
    for name, told in topics.items():
        text = told.get("left_out") or topic(name).tell(told)
        print(f"{name}: {told['title']}\n{'─' * (len(name) + 2 + len(told['title']))}\n\n{text}\n")
    if result.get("plot"):
        print(f"picture: {result['plot']}")
