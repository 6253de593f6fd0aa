"""`triskele task validate | show | create`: task files, checked as coordinator and parties will check them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from triskele.errors import ConfigurationError, InvalidTask
from triskele.task import TaskSpec
from triskele_server.config import ScheduledTask, load_coordinator, load_task
from triskele_server.provision import write_task_file


@dataclass(frozen=True)
class CheckedTask:
    """A task that can be run, and what it opens."""

    task: ScheduledTask
    openings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        from triskele_server.rules import reason_for_wide  # noqa: PLC0415  loads the rules' code

        spec = self.task.spec
        return {
            "name": spec.name,
            "digest": spec.digest.hex(),
            "dimension": spec.dimension,
            "clip_norm": spec.clip_norm,
            "rule": list(spec.stages),
            "rule_options": {k: dict(v) if isinstance(v, Mapping) else v for k, v in spec.rule_options.items()},
            "root": spec.root,
            "participants": list(spec.participants),
            "decisions": spec.decisions,
            "gram": spec.gram,
            "max_weight": spec.max_weight,
            "max_participants": spec.max_participants,
            "max_rows": spec.max_rows,
            "min_accepted": spec.min_accepted,
            "model_dimension": spec.model_dimension,
            "privacy": _privacy(spec),
            "covers": spec.covers,
            "schedule": self.task.schedule.model_dump(),
            "opens": list(self.openings),
            "ring": spec.ring_bits,
            "fraction_bits": spec.fraction_bits,
            "wide_because": reason_for_wide(spec),
            "upload_bytes_per_participant": spec.ring.word_bytes * spec.length,
        }


def _privacy(spec: TaskSpec) -> dict[str, Any] | None:
    """The task's noise, for how many rounds its budget is enough, and why it guarantees nothing if it does not."""
    from triskele_server.privacy import affordable_rounds  # noqa: PLC0415  scipy: only where there is noise
    from triskele_server.rules.noise import no_claim  # noqa: PLC0415  loads the rules' code

    if spec.privacy is None:
        return None
    return asdict(spec.privacy) | {
        "affordable_rounds": affordable_rounds(spec.privacy),
        "no_claim_because": no_claim(spec),
    }


def checked(task: ScheduledTask) -> CheckedTask:
    """Raises ConfigurationError naming what no coordinator or party would take."""
    from triskele_server.party.filter import declared_openings  # noqa: PLC0415  imports torch
    from triskele_server.rules import check_task  # noqa: PLC0415  loads the rules' code

    try:
        check_task(task.spec)
    except InvalidTask as error:
        raise ConfigurationError(f"task {task.spec.name!r} cannot be run: {error}") from error
    return CheckedTask(task, tuple(declared_openings(task.spec)))


def validate(path: Path) -> CheckedTask:
    """A task file; raises ConfigurationError naming file and key."""
    return checked(load_task(path))


def create(coordinator: Path, spec: TaskSpec, schedule: Any) -> tuple[Path, CheckedTask]:
    """A new file in the coordinator's task folder, checked first; the coordinator reads it at its next start."""
    found = checked(ScheduledTask(spec, schedule))
    folder = load_coordinator(coordinator).tasks
    return write_task_file(folder, spec, schedule), found
