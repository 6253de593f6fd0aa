"""Commands of installed extras: entry points `triskele.commands`, each a callable that returns a typer.Typer.

They are loaded only when a command is asked for that the client does not have, or when help lists them all: the
client's own commands neither wait for an extra's imports nor break with them.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

import typer
from typer.core import TyperGroup

from triskele.errors import ConfigurationError

GROUP: Final = "triskele.commands"


class ExtendedGroup(TyperGroup):
    """The client's commands, and behind them those of the extras. Contexts are Any: typer has no public type."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The client's commands, then those of every extra whose imports are there."""
        extras, _ = _load_extras()
        return [*super().list_commands(ctx), *(name for name in extras if name not in self.commands)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command called `cmd_name`; raises ConfigurationError if it may belong to an extra that does not load."""
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        extras, missing = _load_extras()
        if cmd_name not in extras and missing:
            raise ConfigurationError(
                f"no command {cmd_name!r} here; the commands of {', '.join(sorted(missing))} could not be loaded "
                f"({'; '.join(missing.values())}): pip install 'triskele[{min(missing)}]'"
            )
        return extras.get(cmd_name)


def _load_extras() -> tuple[dict[str, Any], dict[str, str]]:
    """Commands by name, and for each extra that does not load the reason."""
    commands: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for entry in entry_points(group=GROUP):
        try:
            commands.update(_commands(entry))
        except ImportError as error:
            missing[entry.name] = f"{error.name or 'a module'} is missing"
        except Exception as error:  # noqa: BLE001  an extra is other people's code: whatever it raises, ours goes on
            missing[entry.name] = f"{type(error).__name__} in {entry.value}"
    return commands, missing


def _commands(entry: EntryPoint) -> dict[str, Any]:
    extra = entry.load()()
    if not isinstance(extra, typer.Typer):
        raise TypeError(f"{entry.value} returned no typer.Typer")
    return dict(typer.main.get_group(extra).commands)
