"""A hook of mkdocs: pages of the site that stand elsewhere in the repository, and links between them.

Files keep their places and links that work where they are read on disk. The site also shows the READMEs and files of
examples/ and the repository's own pages; a link to one of
those becomes a link of the site, one to source code plain text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
PROJECT = {name: f"project/{name.lower()}" for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")}
EXAMPLE_SUFFIXES = (".md", ".py", ".toml")

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
_CODE = re.compile(r"(^(?P<fence>```+).*?^(?P=fence)\s*$)", re.DOTALL | re.MULTILINE)


def on_config(config: Any) -> Any:
    """Complete the navigation: the decision records, and pages of docs/ that nobody named."""
    named = set(_leaves(config.nav))
    unnamed = sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.name not in named)
    for section in config.nav:
        if "Operate" in section:
            section["Operate"] += [name for name in unnamed if name not in section["Operate"]]
        for entry in section.get("Explanation", ()):
            if isinstance(entry, dict) and "Decisions" in entry:
                records = sorted((ROOT / "docs" / "decisions").glob("*.md"))
                entry["Decisions"] = [f"decisions/{path.name}" for path in records]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the files that stand outside docs/."""
    for place in _outside():
        files.append(File.generated(config, _page_of(place), abs_src_path=str(ROOT / place)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links of the repository into links of the site, except in code blocks."""
    here = page.file.src_uri
    place = {_page_of(place): place for place in _outside()}.get(here, f"docs/{here}")
    parts = _CODE.split(markdown)
    # split gives text, block, its fence, text, …
    return "".join(
        _LINK.sub(lambda found: _link(found, place, here), part) if i % 3 == 0 else part
        for i, part in enumerate(parts)
        if i % 3 != 2
    )


def _link(found: re.Match[str], place: str, here: str) -> str:
    image, text, target = found.groups()
    path, hash_sign, anchor = target.partition("#")
    if not path or re.match(r"[a-z]+:", path):
        return found.group()
    wanted = posixpath.normpath(posixpath.join(posixpath.dirname(place), path))
    page = _shown(wanted)
    if page is None:
        return str(text)
    relative = posixpath.relpath(page, posixpath.dirname(here) or ".")
    return f"{image}[{text}]({relative}{hash_sign}{anchor})"


def _shown(place: str) -> str | None:
    """Where the site shows a file or folder of the repository; None: nowhere. A mistake in docs/ is left to mkdocs."""
    if place.startswith("docs/"):
        return place.removeprefix("docs/")
    if (ROOT / place).is_dir():
        place = f"{place}/README.md"
    return _page_of(place) if place in _outside() else None


def _page_of(place: str) -> str:
    return PROJECT.get(place, place)


def _outside() -> list[str]:
    found = (path for path in (ROOT / "examples").rglob("*") if path.suffix in EXAMPLE_SUFFIXES and path.is_file())
    return [*PROJECT, *sorted(path.relative_to(ROOT).as_posix() for path in found)]


def _leaves(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    entries = nav.values() if isinstance(nav, dict) else nav
    return [leaf for entry in entries for leaf in _leaves(entry)]
