"""The API pages, made from docstrings."""

import logging
from typing import Any, NamedTuple

from api_links import Links
from api_package import PAGES, FaultRecorder, Part, resolve
from api_text import (
    TextWriter,
    fence_python,
    format_class,
    format_function,
    join_lines,
    read_fields,
)
from staging import ROOT, map_pages

INDEX = "api/index.md"


class Reference(NamedTuple):
    """The API pages.

    Attributes:
        texts: page -> Markdown.
        places: `lorakit.name` -> its page and heading.
        faults: public names on no page, and docstrings that cannot be rendered.
    """

    texts: dict[str, str]
    places: dict[str, str]
    faults: list[str]


def make_reference(package: Any) -> Reference:
    """Write all API pages of the package that `load_package` returns."""
    recorder = FaultRecorder()
    logger = logging.getLogger("griffe")
    logger.addHandler(recorder)
    try:
        links = Links(package)
        texts = {INDEX: make_index(links, package)}
        for page in PAGES:
            texts[page] = make_page(links, page)
    finally:
        logger.removeHandler(recorder)
    faults = links.find_missing() + recorder.faults
    return Reference(texts, links.list_places(), faults)


def make_index(links: Links, package: Any) -> str:
    """Return the page that lists the public names and the API pages."""
    writer = TextWriter(links, INDEX)
    lines = [
        "# API",
        "",
        "The names of `import lorakit`, and the rooms that define them.",
        "",
        "| name | description |",
        "| --- | --- |",
    ]
    for name, path in links.public.items():
        thing = resolve(package[path.removeprefix("lorakit.")])
        first = thing.docstring.value.partition("\n\n")[0]
        words = writer.format_words(join_lines(first))
        lines.append(f"| {links.link(f'`{name}`', INDEX)} | {words} |")
    lines += ["", "## Rooms", "", "| page | about |", "| --- | --- |"]
    for page, entry in PAGES.items():
        link = f"[{entry['title']}]({page.removeprefix('api/')})"
        lines.append(f"| {link} | {entry['summary']} |")
    return "\n".join(lines) + "\n"


def make_page(links: Links, page: str) -> str:
    """Return an API page."""
    entry, parts = PAGES[page], links.parts[page]
    is_one_module = len(parts) == 1 and parts[0].module is not None
    sections = [f"# {entry['title']}"]
    if not is_one_module:
        sections.append(entry["summary"])
    if "guide" in entry:
        sections.append(link_guide(entry["guide"]))
    for part in parts:
        sections += make_part(links, page, part, is_whole_page=is_one_module)
    return "\n\n".join(sections) + "\n"


def link_guide(guide: str) -> str:
    """Return a link to the page of docs/ that explains an API page."""
    file, hash_sign, anchor = guide.partition("#")
    heading = (ROOT / "docs" / file).read_text("utf-8").partition("\n")[0]
    target = f"../{map_pages()[f'docs/{file}']}{hash_sign}{anchor}"
    return f"Guide: [{heading.lstrip('# ')}]({target})."


def make_part(links: Links, page: str, part: Part, *, is_whole_page: bool) -> list[str]:
    """Return the sections of one part: the module's docstring, and those of its members."""
    sections = []
    module = part.module
    level = 2
    if module is not None:
        docstring = writer_of(links, page, module).format_docstring(module)
        if is_whole_page:
            sections.append(f"`{module.path}`. {docstring}")
        else:
            level = 3
            sections += [f"## {module.path} {{ #{module.path} }}", docstring]
    for thing in part.members:
        if links.page_of[thing.path] == page:
            sections.append(make_member(links, page, thing, level))
    return sections


def writer_of(links: Links, page: str, thing: Any) -> TextWriter:
    """Return a writer for the docstring of something, which may name its neighbours."""
    return TextWriter(links, page, near=thing.path.rpartition(".")[0])


def make_member(links: Links, page: str, thing: Any, level: int) -> str:
    """Return the section of a function or class, under a heading of this level."""
    writer = writer_of(links, page, thing)
    name = links.import_name[thing.path]
    sections = [f"{'#' * level} {thing.name} {{ #{thing.path} }}"]
    if thing.is_function:
        sections += [format_function(thing, name), writer.format_docstring(thing)]
        return "\n\n".join(sections)
    fields = read_fields(thing)
    sections.append(format_class(thing, name, has_fields=bool(fields)))
    sections.append(writer.format_docstring(thing))
    if fields:
        sections.append(f"**Fields**\n\n{writer.format_list(fields)}")
    for member in thing.members.values():
        if member.docstring and not (member.is_alias or member.name.startswith("_")):
            sections += make_class_member(links, page, thing, member, level + 1)
    return "\n\n".join(sections)


def make_class_member(links: Links, page: str, cls: Any, member: Any, level: int) -> list[str]:
    """Return the heading, signature and docstring of a method or attribute."""
    sections = [f"{'#' * level} {cls.name}.{member.name} {{ #{member.path} }}"]
    annotation = getattr(member, "annotation", None)
    if member.is_function:
        sections.append(format_function(member, member.name))
    elif annotation is not None:
        sections.append(fence_python(f"{member.name}: {annotation}"))
    sections.append(writer_of(links, page, member).format_docstring(member))
    return sections
