"""An audit as one HTML page: no script, nothing from outside, light and dark. Every text in it is somebody else's.

Names of participants, tasks and parties' words are hostile input: whatever goes into the page goes through `_text`. The
page's own policy (CSP) allows its style sheet and nothing else, should that ever be forgotten.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import islice
from typing import Final

from triskele.transparency.audit import Audit, AuditedRound, AuditedTask, cosigners, stated_epsilon
from triskele.transparency.explanations import explain

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 720, 150, 44, 18, 8  # of a plot, its margins; CSS pixels
_REFUSALS_SHOWN: Final = 500  # of one task, the newest; the JSON report has them all
_STYLE: Final = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1c2024; --soft: #60666d; --line: #d9dde1; --in: #2f6fb3;
  --filtered: #d98a2b; --refused: #b5443c; --out: #a9afb6; --good: #2c7a4b; --bad: #b02a21; --card: #f6f7f8; }
@media (prefers-color-scheme: dark) { :root { --ground: #15181b; --ink: #e6e8ea; --soft: #9aa1a8; --line: #34393e;
  --in: #6ba6e3; --filtered: #e3a657; --refused: #e07a72; --out: #6c737a; --good: #6cc08b; --bad: #ef8b83;
  --card: #1d2125; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .25rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
p { margin: .4rem 0; max-width: 48rem; }
.soft, figcaption, dt { color: var(--soft); }
.verdict { margin: 1.25rem 0; padding: .8rem 1rem; background: var(--card); border-left: 4px solid var(--good); }
.verdict.bad { border-color: var(--bad); }
.verdict strong { color: var(--good); } .verdict.bad strong { color: var(--bad); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1.25rem; margin: .75rem 0; }
dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .3rem 1rem .3rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; white-space: nowrap; } td.number, th.number { text-align: right; }
.bad-text { color: var(--bad); } code { font: .85em ui-monospace, monospace; }
figure { margin: 1rem 0; } svg { display: block; width: 100%; height: auto; max-width: 45rem; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
.axis { stroke: var(--line); } .in { fill: var(--in); } .filtered { fill: var(--filtered); }
.refused { fill: var(--refused); } .out { fill: var(--out); } .spent { fill: none; stroke: var(--in); stroke-width: 2; }
.budget { stroke: var(--ink); stroke-dasharray: 5 4; }
.key.dashed { height: 0; width: 1.2rem; border-top: 1.5px dashed var(--ink); vertical-align: middle; }
.key { display: inline-block; width: .7rem; height: .7rem; margin: 0 .35rem 0 1rem; }
.key.in { background: var(--in); } .key.filtered { background: var(--filtered); }
.key.refused { background: var(--refused); } .key.out { background: var(--out); }
details { margin: 1rem 0; } summary { cursor: pointer; color: var(--soft); }
"""


def page(audit: Audit) -> str:
    """The whole page."""
    title = f"Audit of {audit.federation or 'a log'}"
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>",
            *_head(audit),
            *(line for task in audit.tasks for line in _task(task)),
            *_foot(),
            "</body></html>\n",
        ]
    )


def _head(audit: Audit) -> Iterator[str]:
    rounds = sum(len(task.rounds) for task in audit.tasks)
    yield f"<h1>Audit of the rounds of {_text(audit.federation or 'an unknown federation')}</h1>"
    yield f'<p class="soft">{_counted(rounds, "round")} of {_counted(len(audit.tasks), "task")} shown, '
    yield f"{_counted(audit.entries, 'entry', 'entries')} in the log.</p>"
    if audit.clean:
        yield '<div class="verdict"><strong>Nothing is wrong with this log.</strong> Every certificate is signed by '
        yield "enough parties, and the log is the one that they cosigned.</div>"
    else:
        yield f'<div class="verdict bad"><strong>{_counted(len(audit.findings), "finding")}.</strong> '
        yield "What is listed here must not be; ask whoever is named.</div>"
        yield from _table(
            ("Entry", "What is wrong", "Whose doing"),
            ((_entry(f.entry), _text(f.what), _text(f.whose)) for f in audit.findings),
        )
    if audit.cosigned is not None:
        found = audit.cosigned
        yield "<dl><dt>Log</dt>"
        yield f"<dd>{_text(found.checkpoint.origin)}, {found.checkpoint.size} entries</dd>"
        yield f"<dt>Root</dt><dd><code>{found.checkpoint.root.hex()}</code></dd>"
        yield "".join(f"<dt>Party {party} cosigned</dt><dd>{_moment(time)}</dd>" for party, time in cosigners(found))
        yield "</dl>"
    if audit.notes:
        yield f"<h3>Notes</h3><ul>{''.join(f'<li>{_text(note)}</li>' for note in audit.notes)}</ul>"


def _entry(index: int | None) -> str:
    return "all" if index is None else str(index)


def _task(of: AuditedTask) -> Iterator[str]:
    task = of.task
    yield f"<section><h2>Task {_text(task.name)}</h2><dl>"
    ended = ", ".join(f"{of.count(s)} {s.lower()}" for s in ("RELEASED", "FAILED", "EXPIRED") if of.count(s))
    privacy = (
        "no noise"
        if task.privacy is None
        else (
            f"noise multiplier {task.privacy.noise_multiplier:g}, budget ε = {task.privacy.budget_epsilon:g} at "
            f"δ = {task.privacy.delta:g}"
        )
    )
    for name, value in (
        ("Rounds", f"{len(of.rounds)}: {ended}"),
        ("Digest", task.digest.hex()),
        ("Rule", " → ".join(task.stages)),
        ("Update", f"{task.dimension} words, clipped to L2 norm {task.clip_norm:g}"),
        ("Smallest cohort", str(task.min_accepted)),
        ("Decisions, aggregate", f"{task.decisions}; for {'participants only' if task.masked else 'everybody'}"),
        ("Privacy", privacy),
    ):
        yield f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>"
    yield "</dl>"
    yield _cohorts(of)
    yield _epsilon(of)
    yield from _refusals(of)
    yield f"<details{' open' if len(of.rounds) <= 60 else ''}><summary>Every round</summary>"
    yield from _table(
        ("Round", "Entry", "Ended", "#Submissions", "#In the aggregate", "#Refused", "#Left out", "ε spent", "Result"),
        (_row(each) for each in of.rounds),
    )
    yield "</details></section>"


def _row(each: AuditedRound) -> tuple[str, ...]:
    account, released = each.certificate.account, each.released
    counts = ("–", "–", "–", str(each.left_out))
    spent, result = "–", ""
    if released is not None:
        counts = (str(len(released.submissions)), str(each.counted), str(each.refused), str(each.left_out))
        if released.privacy is not None:
            spent = _text(released.privacy.epsilon or "no claim")
        result = f"<code>{_text(released.output.digest[:16])}</code>"
    elif account.blame is not None:
        why = explain(account.blame.reason, each.certificate.task)
        result = f"{_text(why)} <span class='soft'>({_text(account.blame.who)})</span>"
    state = _text(account.state.lower())
    ended = state if released is not None else f'<span class="bad-text">{state}</span>'
    return (str(account.round), str(each.index), ended, *counts, spent, result)


def _refusals(of: AuditedTask) -> Iterator[str]:
    """Who is in no aggregate, and why, the newest first; the same sentence is said once."""
    found: dict[str, dict[str, list[int]]] = {}
    newest = (
        (part, each.certificate.round)
        for each in reversed(of.rounds)
        for part in (*each.refusals, *each.certificate.account.left_out)
    )
    for part, number in islice(newest, _REFUSALS_SHOWN):
        found.setdefault(part.reason, {}).setdefault(part.participant, []).append(number)
    if not found:
        yield "<h3>Refusals</h3><p>Nobody was refused or left out.</p>"
        return
    total = sum(each.left_out + each.refused for each in of.rounds)
    shown = f"; the newest {_REFUSALS_SHOWN} are shown" if total > _REFUSALS_SHOWN else ""
    yield f"<h3>Refusals</h3><p class='soft'>{_counted(total, 'submission')} came into no aggregate{shown}.</p>"
    yield from _table(
        ("Because", "Participants, and in which rounds"),
        (
            (_text(explain(reason, of.task)), "; ".join(f"{_text(p)} ({_listed(rounds)})" for p, rounds in who.items()))
            for reason, who in found.items()
        ),
    )


def _listed(rounds: Sequence[int]) -> str:
    return ", ".join(map(str, rounds))


def _cohorts(of: AuditedTask) -> str:
    """Stacked over the rounds: who is in the aggregate, who was rejected by the rule, refused, left out."""
    layers = (
        ("in", "in the aggregate", [each.counted for each in of.rounds]),
        ("filtered", "rejected by the rule", [each.filtered for each in of.rounds]),
        ("refused", "refused by the check", [each.refused for each in of.rounds]),
        ("out", "left out", [each.left_out for each in of.rounds]),
    )
    used = [layer for layer in layers if layer[0] == "in" or any(layer[2])]
    most = max(1, *(sum(column) for column in zip(*(values for _, _, values in used), strict=True)))
    lower = [0] * len(of.rounds)
    shapes = []
    for name, _, values in used:
        upper = [a + b for a, b in zip(lower, values, strict=True)]
        shapes.append(f'<path class="{name}" d="{_area(lower, upper, most)}"/>')
        lower = upper
    keys = "".join(f'<span class="key {name}"></span>{what}' for name, what, _ in used)
    minimum = of.task.min_accepted
    line = _level(minimum, most) if minimum <= most else ""
    keys += f'<span class="key dashed"></span>smallest cohort, {minimum}'
    return _figure("Submissions by round", keys, [*shapes, line], most, _numbers(of.rounds))


def _epsilon(of: AuditedTask) -> str:
    if of.task.privacy is None:
        return ""
    stated = ((i, stated_epsilon(each)) for i, each in enumerate(of.rounds))
    spent = [(i, value) for i, value in stated if value is not None]
    if not spent:
        return "<p>The task adds noise without a differential-privacy guarantee: there is no ε to show.</p>"
    budget = of.task.privacy.budget_epsilon
    most = max(budget, *(value for _, value in spent)) * 1.08
    step = (_WIDTH - _LEFT) / len(of.rounds)
    points = " ".join(f"{_LEFT + (i + 0.5) * step:.1f},{_y(value, most):.1f}" for i, value in spent)
    line = f'<polyline class="spent" points="{points}"/>'
    dots = (
        "" if len(spent) > 1 else f'<circle class="in" r="3" cx="{points.split(",")[0]}" cy="{points.split(",")[1]}"/>'
    )
    shapes = [line, dots, _level(budget, most)]
    keys = f'what all rounds so far cost one participant<span class="key dashed"></span>budget, {budget:g}'
    return _figure("Privacy spent (ε)", keys, shapes, most, _numbers(of.rounds))


def _figure(title: str, caption: str, shapes: Iterable[str], most: float, numbers: Sequence[int]) -> str:
    first, last = (str(numbers[0]), str(numbers[-1])) if numbers else ("", "")
    middle = _LEFT + (_WIDTH - _LEFT) / 2
    floor = _HEIGHT - _BOTTOM
    return (
        f"<figure><figcaption><strong>{_text(title)}</strong><br>{caption}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{_text(title)}">'
        f"{''.join(shapes)}"
        f'<line class="axis" x1="{_LEFT}" y1="{floor}" x2="{_WIDTH}" y2="{floor}"/>'
        f'<text x="{_LEFT - 6}" y="{_y(most, most) + 8:.0f}" text-anchor="end">{most:.3g}</text>'
        f'<text x="{_LEFT - 6}" y="{floor}" text-anchor="end">0</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 4}">round {first}</text>'
        f'<text x="{_WIDTH if last != first else middle}" y="{_HEIGHT - 4}" text-anchor="end">'
        f"{last if last != first else ''}</text></svg></figure>"
    )


def _level(value: float, most: float) -> str:
    """A dashed line across the plot."""
    y = _y(value, most)
    return f'<line class="budget" x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH}" y2="{y:.1f}"/>'


def _area(lower: Sequence[int], upper: Sequence[int], most: float) -> str:
    """A step for each round, between two heights; a narrow gap between rounds while there is room for one."""
    step = (_WIDTH - _LEFT) / max(1, len(upper))
    gap = min(2.0, step / 5) if step > 3 else 0.0
    return "".join(
        f"M{_LEFT + i * step:.2f} {_y(high, most):.2f}H{_LEFT + (i + 1) * step - gap:.2f}V{_y(low, most):.2f}"
        f"H{_LEFT + i * step:.2f}Z"
        for i, (low, high) in enumerate(zip(lower, upper, strict=True))
        if high > low
    )


def _y(value: float, most: float) -> float:
    return _TOP + (_HEIGHT - _BOTTOM - _TOP) * (1 - value / most)


def _numbers(rounds: Sequence[AuditedRound]) -> list[int]:
    return [each.certificate.round for each in rounds]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Cells are HTML already. A heading that begins with # is of numbers."""
    numeric = [name.startswith("#") for name in head]

    def cell(kind: str, content: str, *, number: bool) -> str:
        return f"<{kind}{' class=number' if number else ''}>{content}</{kind}>"

    names = "".join(cell("th", _text(h.lstrip("#")), number=n) for h, n in zip(head, numeric, strict=True))
    yield f'<div class="wide"><table><thead><tr>{names}</tr></thead><tbody>'
    for row in rows:
        yield f"<tr>{''.join(cell('td', c, number=n) for c, n in zip(row, numeric, strict=True))}</tr>"
    yield "</tbody></table></div>"


def _foot() -> Iterator[str]:
    yield "<h2>What this does not tell</h2><p>Who was left out of an input set, and why a round gave no result, is the "
    yield "coordinator’s word: parties carry it in the certificate and cannot check it. A certificate says what the "
    yield "parties computed, not whether the participants’ updates were good. What the coordinator never closed is in "
    yield "no log. If fewer than all three parties had to cosign, one dishonest party and the coordinator can show two "
    yield "people two logs.</p>"


def _moment(time: int) -> str:
    try:
        return datetime.datetime.fromtimestamp(time, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"at an impossible time ({time})"


def _counted(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _text(content: object) -> str:
    """Anything as text of the page; characters that are invisible or turn the line around are shown by their number."""
    return escape("".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in str(content)), quote=True)
