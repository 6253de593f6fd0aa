"""A hook of mkdocs: the reference of the command line, written from the commands themselves."""

from __future__ import annotations

from typing import Any

import typer

from triskele.cli import app

MARK = "<!-- the commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the commands where a page has the mark."""
    return markdown.replace(MARK, "\n".join(reference())) if MARK in markdown else markdown


def reference() -> list[str]:
    """Lines of markdown: every command with its arguments and options."""
    command = typer.main.get_command(app)
    return _described(command, command.make_context("triskele", [], resilient_parsing=True))


def _described(command: Any, context: Any) -> list[str]:
    lines = []
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        within = inner.make_context(name, [], parent=context, resilient_parsing=True)
        lines += [f"## {within.command_path}", "", (inner.help or "").strip(), ""]
        shown = [p for p in inner.params if p.name != "help" and not getattr(p, "hidden", False)]
        if shown:
            lines += ["| option | |", "|---|---|", *(_row(parameter) for parameter in shown), ""]
        if hasattr(inner, "list_commands"):
            lines += [f"#{line}" if line.startswith("## ") else line for line in _described(inner, within)]
    return lines


def _row(parameter: Any) -> str:
    option = parameter.opts[0].startswith("-")
    name = ", ".join(f"`{text}`" for text in parameter.opts) if option else f"`{parameter.name.upper()}`"
    default = parameter.default
    notes = [
        parameter.help or "",
        "**Required.**" if parameter.required else "",
        f"Default: `{default}`." if isinstance(default, str | float | int) and not isinstance(default, bool) else "",
    ]
    return f"| {name} | {' '.join(note for note in notes if note)} |"
