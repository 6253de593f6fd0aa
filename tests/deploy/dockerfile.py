"""The Dockerfile as its instructions."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"


@dataclass(frozen=True)
class Instruction:
    """One instruction: "RUN", its text with continued lines joined, and the stage it is in."""

    name: str
    text: str
    stage: str


def instructions() -> list[Instruction]:
    """All instructions in order; those before the first FROM are in the stage ""."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line.strip() and not line.startswith("#")]
    found: list[Instruction] = []
    stage = ""
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        name, _, text = line.partition(" ")
        if name == "FROM":
            stage = text.rpartition(" AS ")[2]
        found.append(Instruction(name, text.strip(), stage))
    return found


def of(name: str, stage: str | None = None) -> list[str]:
    """Texts of the instructions of one name."""
    return [i.text for i in instructions() if i.name == name and stage in (None, i.stage)]


def environment(stage: str) -> dict[str, str]:
    """What ENV sets in a stage."""
    return dict(pair.split("=", 1) for text in of("ENV", stage) for pair in text.split())


def exec_form(name: str) -> list[str]:
    """The words of ENTRYPOINT or CMD; raises ValueError if it is not JSON, so would run in a shell."""
    (text,) = of(name)
    words = json.loads(text)
    return list(words)
