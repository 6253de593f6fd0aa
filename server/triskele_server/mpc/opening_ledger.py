"""The opening ledger: every value that a round opens, declared before, recorded as it happens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from triskele.errors import TriskeleError


class UndeclaredOpening(TriskeleError):
    """Something tried to open a value that the round did not declare; nothing was opened."""


@dataclass(frozen=True)
class Opening:
    """One opened value: its name, its shape, and who learns it."""

    name: str
    shape: tuple[int, ...]
    to: str = "parties"

    def __str__(self) -> str:
        return f"{self.name}[{','.join(map(str, self.shape))}]"


@dataclass
class OpeningLedger:
    """Declared names, in the order in which they may be opened, each at most once."""

    declared: Sequence[str]
    openings: list[Opening] = field(default_factory=list)
    _held: bool = False

    @contextmanager
    def withheld(self) -> Iterator[None]:
        """Nothing may be opened inside the block, whatever is declared: a rule runs in there. Blocks may nest."""
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before

    def resume(self, openings: Sequence[tuple[str, tuple[int, ...]]]) -> None:
        """Take over what an earlier attempt at the same computation opened: it is not opened again."""
        for name, shape in openings:
            self.admit(name, shape)

    def admit(self, name: str, shape: tuple[int, ...]) -> None:
        """Record an opening; raises UndeclaredOpening unless `name` is declared, not yet opened and in order."""
        if self._held:
            raise UndeclaredOpening(f"opening {name!r} refused: a rule opens nothing, the round opens what is declared")
        last = self.declared.index(self.openings[-1].name) if self.openings else -1
        if name not in self.declared[last + 1 :]:
            raise UndeclaredOpening(
                f"opening {name!r} refused: the round declares {list(self.declared)} in this order, "
                f"and has opened {[o.name for o in self.openings]}"
            )
        self.openings.append(Opening(name, shape))
