"""Links to the API pages: the page, the heading and the import name of everything documented."""

from typing import Any

from api_package import Part, collect_parts, read_public_names


class Links:
    """The places of all documented modules, functions and classes.

    Attributes:
        parts: page -> its parts.
        public: name in `lorakit.__all__` -> full path.
        page_of: full path -> page.
        import_name: full path -> the name that users import.
        path_of: a name as docstrings write it -> full path.
    """

    def __init__(self, package: Any):
        self.parts = collect_parts(package)
        self.public = read_public_names(package)
        self.page_of: dict[str, str] = {}
        self.import_name: dict[str, str] = {}
        self.path_of: dict[str, str] = {}
        for page, parts in self.parts.items():
            for part in parts:
                self._add_part(page, part)
        for name, path in self.public.items():
            self.import_name[path] = f"lorakit.{name}"
            self.path_of[name] = path
            self.path_of[f"lorakit.{name}"] = path

    def _add_part(self, page: str, part: Part) -> None:
        if part.module is not None:
            self._add(page, part.module.path, part.module.path)
        for thing in part.members:
            name = thing.path
            if part.module is not None:
                name = f"{part.module.path}.{thing.name}"
            self._add(page, thing.path, name)

    def _add(self, page: str, path: str, name: str) -> None:
        self.page_of.setdefault(path, page)
        self.import_name[path] = name
        self.path_of.setdefault(name, path)
        self.path_of.setdefault(name.removeprefix("lorakit."), path)

    def find_missing(self) -> list[str]:
        """Return a message for each public name that is on no page."""
        missing = []
        for name, path in self.public.items():
            if path not in self.page_of:
                missing.append(f"lorakit.{name} is on no API page")
        return missing

    def find_place(self, path: str) -> str:
        """Return the page of something, with its heading unless it is the whole page."""
        page = self.page_of[path]
        first, *others = self.parts[page]
        if not others and first.module is not None and first.module.path == path:
            return page
        return f"{page}#{path}"

    def list_places(self) -> dict[str, str]:
        """Return the place of each documented name that begins with `lorakit.`."""
        places = {}
        for name, path in self.path_of.items():
            if name.startswith("lorakit.") and path in self.page_of:
                places[name] = self.find_place(path)
        return places

    def link(self, code: str, page: str, near: str = "") -> str:
        """Return a piece of code on an API page, as a link if it names something documented.

        Args:
            code: the piece, with its backticks.
            page: the API page that it is on; all are in one folder.
            near: module whose names may be written without its path.
        """
        name = code.strip("`").partition("(")[0]
        path = self.path_of.get(name, f"{near}.{name}")
        if path not in self.page_of:
            return code
        file, _, anchor = self.find_place(path).rpartition("/")[2].partition("#")
        if not anchor:
            return f"[{code}]({file})"
        if self.page_of[path] == page:
            file = ""
        return f"[{code}]({file}#{anchor})"
