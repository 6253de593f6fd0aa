"""The report: one line per rule as Markdown, a heat map of rules by attacks, everything as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from bench.robustness.attacks import ATTACKS
from bench.robustness.data import DATA_SETS
from bench.robustness.defences import Execution
from bench.robustness.run import CellResult

LAST_ROUNDS: Final = 3
"""Accuracy and backdoor success are means over so many last rounds, then over the seeds."""
BEGIN: Final = "<!-- measured: begin -->"
END: Final = "<!-- measured: end -->"

BACKDOORS: Final = ("backdoor-boosted", "backdoor-projected", "backdoor-adaptive")


@dataclass(frozen=True)
class Score:
    """Means over the last rounds and the seeds, as fractions; failed rounds of all seeds."""

    accuracy: float
    backdoor: float | None
    failed_rounds: int


@dataclass(frozen=True)
class Panel:
    """One data set at one number of participants: the score by (rule, attack), None where the rule was refused."""

    data: str
    participants: int
    scores: dict[tuple[str, str], Score | None]

    @property
    def title(self) -> str:
        """For a heading."""
        return f"{DATA_SETS[self.data].title}, {self.participants} participants"

    @property
    def defences(self) -> list[str]:
        """In the order of the run."""
        return list(dict.fromkeys(defence for defence, _ in self.scores))

    @property
    def attacks(self) -> list[str]:
        """In the order of the run."""
        return list(dict.fromkeys(attack for _, attack in self.scores))

    def worst(self, defence: str) -> tuple[str, Score] | None:
        """The untargeted attack that hurts the rule most."""
        untargeted = [a for a in self.attacks if a != "none" and not ATTACKS[a].plants_backdoor]
        scored = [(attack, score) for attack in untargeted if (score := self.scores.get((defence, attack)))]
        return min(scored, key=lambda pair: pair[1].accuracy) if scored else None


def panels(results: Iterable[CellResult]) -> list[Panel]:
    """Results by data set and number of participants, averaged over the seeds."""
    by_panel: dict[tuple[str, int], dict[tuple[str, str], list[CellResult]]] = {}
    for result in results:
        cell = result.cell
        panel = by_panel.setdefault((cell.data, cell.participants), {})
        panel.setdefault((cell.defence, cell.attack), []).append(result)
    return [
        Panel(data, participants, {key: _score(group) for key, group in groups.items()})
        for (data, participants), groups in by_panel.items()
    ]


def markdown(found: Sequence[Panel], *, command: str, execution: Execution, seeds: Sequence[int]) -> str:
    """The measured part of the page: the command, and one table per panel."""
    how = "in the clear (float64)" if execution.in_the_clear else f"by three parties (`gram = {execution.gram}`)"
    parts = [
        f"Rules run {how}; {'seed' if len(seeds) == 1 else 'mean of seeds'} {', '.join(map(str, seeds))}. Command:",
        f"```\n{command}\n```",
    ]
    parts += [f"### {panel.title}\n\n{_table(panel)}" for panel in found]
    return "\n\n".join(parts) + "\n"


def write_between_markers(page: Path, measured: str) -> None:
    """Replace what stands between the markers of an existing page; a page without markers is overwritten."""
    text = page.read_text("utf-8") if page.exists() else ""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        head, tail = "", "\n"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f"{head}{BEGIN}\n\n{measured}\n{END}{tail}", "utf-8")


def as_json(results: Sequence[CellResult], *, command: str, execution: Execution) -> str:
    """Every round of every cell."""
    content: dict[str, Any] = {"command": command, **asdict(execution), "results": [asdict(r) for r in results]}
    return json.dumps(content, indent=1)


def heat_map(found: Sequence[Panel], path: Path) -> None:
    """Rules by attacks, one panel each, in per cent: accuracy, or under backdoors the backdoor's success."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - slow to import, only needed here
    from matplotlib.figure import Figure  # noqa: PLC0415 - the same

    heights = [len(panel.defences) + 4 for panel in found]
    figure = Figure(figsize=(13, 0.36 * sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(found), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for panel, axis in zip(found, axes, strict=True):
        good = [[_goodness(panel.scores.get((d, a))) for a in panel.attacks] for d in panel.defences]
        axis.imshow(good, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto")
        axis.set_title(panel.title, fontsize=10, loc="left")
        axis.set_xticks(range(len(panel.attacks)), panel.attacks, rotation=30, ha="right", fontsize=8)
        axis.set_yticks(range(len(panel.defences)), panel.defences, fontsize=8)
        for row, defence in enumerate(panel.defences):
            for column, attack in enumerate(panel.attacks):
                text = _shown(panel.scores.get((defence, attack)))
                colour = "black" if 0.15 < good[row][column] < 0.85 else "white"
                axis.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    figure.suptitle(
        "Accuracy in %; under a backdoor instead the share of triggered images taken for the target, in %", fontsize=10
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _score(group: Sequence[CellResult]) -> Score | None:
    if any(result.refused for result in group):
        return None
    last = [result.rounds[-LAST_ROUNDS:] for result in group]
    accuracy = fmean(report.accuracy for rounds in last for report in rounds)
    successes = [report.backdoor for rounds in last for report in rounds if report.backdoor is not None]
    return Score(
        accuracy,
        fmean(successes) if successes else None,
        sum(result.failed_rounds for result in group),
    )


def _table(panel: Panel) -> str:
    shown = [attack for attack in BACKDOORS if attack in panel.attacks]
    titles = ["rule", "no attack", "worst", "under", *(attack.replace("-", ", ", 1) for attack in shown)]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for defence in panel.defences:
        worst = panel.worst(defence)
        cells = [f"`{defence}`", _accuracy(panel.scores.get((defence, "none")))]
        cells += [_accuracy(worst[1]), worst[0]] if worst else ["–", "–"]
        cells += [_backdoor(panel.scores.get((defence, attack))) for attack in shown]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + _notes(panel)


def _notes(panel: Panel) -> str:
    refused = sorted({defence for (defence, _), score in panel.scores.items() if score is None})
    failed = [(pair, score.failed_rounds) for pair, score in panel.scores.items() if score and score.failed_rounds]
    notes = []
    if refused:
        notes.append(f"Refused at this size, as tasks are: {', '.join(f'`{defence}`' for defence in refused)}.")
    if failed:
        listed = ", ".join(f"`{defence}` under {attack} {count}" for (defence, attack), count in failed)
        notes.append(f"Rounds that failed and left the model as it was: {listed}.")
    return "".join(f"\n\n{note}" for note in notes)


def _accuracy(score: Score | None) -> str:
    return "–" if score is None else f"{100 * score.accuracy:.1f}"


def _backdoor(score: Score | None) -> str:
    return "–" if score is None or score.backdoor is None else f"{100 * score.backdoor:.0f} ({_accuracy(score)})"


def _shown(score: Score | None) -> str:
    if score is None:
        return "–"
    return f"{100 * (score.accuracy if score.backdoor is None else score.backdoor):.0f}"


def _goodness(score: Score | None) -> float:
    if score is None:
        return 0.5
    return score.accuracy if score.backdoor is None else 1 - score.backdoor
