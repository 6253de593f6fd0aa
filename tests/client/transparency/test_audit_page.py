"""The report of an audit is one page on which nothing runs, nothing comes from outside, and every name is only text."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from triskele.transparency.audit import Audit, Finding, audit
from triskele.transparency.audit_page import page
from triskele.transparency.certificate import CLAIM, NO_CLAIM, Certificate, LeftOut, PrivacySpent

from .logs import PRIVATE, PRIVATE_OPENED, a_round, history, log_of
from .rounds import failed, party_keys

HOSTILE = "<script>alert(1)</script>\"'&\u202e\x00\u2028<img src=x onerror=a()>"
VOID = {"meta", "br"}


class Parsed(HTMLParser):
    """Tags, attributes and text of a page; fails if a tag is not closed in its place."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(content)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def shown(*certificates: Certificate) -> tuple[Audit, str]:
    found = audit(log_of(*certificates), party_keys())
    return found, page(found)


def private(number: int, epsilon: str | None, claim: str = CLAIM) -> Certificate:
    privacy = PrivacySpent(claim=claim, rounds=number, epsilon=epsilon)  # type: ignore[arg-type]  # one of the two
    values = {"openings": PRIVATE_OPENED, "accepted": (0, 1, 2, 3), "weights": None, "privacy": privacy}
    return a_round(number, PRIVATE, **values)


def test_the_page_tells_rounds_cohorts_refusals_and_privacy() -> None:
    found = audit(history(), party_keys())
    text = " ".join(Parsed(page(found)).text.split())
    assert "Nothing is wrong with this log." in text
    assert "Task faces" in text
    assert "4: 3 released, 1 failed" in text
    assert "it failed the validity check" in text  # in words, with the bound
    assert "clip_norm (1.5" in text
    assert "p4 (4, 2, 1)" in text
    assert "its upload was not complete at all three parties" in text
    assert "a party broke the protocol, and another one noticed" in text
    assert "Party 2 cosigned2025-11-24 13:20:02 UTC" in text
    assert found.cosigned is not None
    assert found.cosigned.checkpoint.root.hex() in text
    _, spent = shown(private(1, "4.72839"), private(2, "7.07739"))
    assert "Privacy spent (ε)" in spent
    assert "7.07739" in spent
    assert "without a differential-privacy guarantee" in shown(private(1, None, NO_CLAIM))[1]


def test_findings_come_first_with_whose_doing_it_is() -> None:
    content = page(audit(replace(history(), envelopes=history().envelopes[:3]), party_keys()))
    text = Parsed(content).text
    assert "1 finding." in text
    assert "Nothing is wrong" not in text
    assert text.index("3 entries are here, but the parties cosigned 4") < text.index("Task faces")
    assert "coordinator, or whoever changed the file" in text


def test_nothing_runs_and_nothing_is_fetched() -> None:
    content = page(audit(history(), party_keys()))
    parsed = Parsed(content)
    assert not {"script", "img", "link", "iframe", "object", "embed", "form", "base", "a"} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name.startswith("on") or name in ("src", "href", "style")]
    assert "url(" not in content
    assert "@import" not in content
    (policy,) = [value for _, value in parsed.attributes if value.startswith("default-src")]
    (style,) = re.findall(r"<style>(.*?)</style>", content, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert "prefers-color-scheme: dark" in style


def test_hostile_names_and_words_are_only_text() -> None:
    left_out = (LeftOut(slot=0, participant=HOSTILE[:64], reason=HOSTILE[:64]),)
    certificate = a_round(1)
    account = certificate.account.model_copy(update={"left_out": left_out})
    broken = failed(number=2).account
    assert broken.blame is not None
    blame = broken.blame.model_copy(update={"who": HOSTILE, "reason": HOSTILE[:64]})
    found = audit(log_of(Certificate(account), Certificate(broken.model_copy(update={"blame": blame}))), party_keys())
    assert found.clean
    said = replace(found, federation=HOSTILE, notes=(HOSTILE,), findings=(Finding(None, HOSTILE, HOSTILE),))
    content = page(said)
    parsed = Parsed(content)
    assert not {"script", "img"} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in parsed.text  # as text, for the auditor to see
    assert "\u202e" not in content
    assert "\x00" not in content
    assert "\\u202e" in content


def test_the_plots_hold_for_one_round_and_for_thousands() -> None:
    for count in (1, 1500):
        one = a_round(1)
        found = audit(log_of(one), party_keys())
        (task,) = found.tasks
        many = replace(found, tasks=(replace(task, rounds=task.rounds * count),))
        content = page(many)
        Parsed(content)
        numbers = [float(n) for path in re.findall(r'd="([^"]*)"', content) for n in re.findall(r"-?[0-9.]+", path)]
        assert numbers
        assert all(0 <= number <= 720 for number in numbers)


@pytest.mark.parametrize("epsilon", ["1e999", "..", "-3"])
def test_an_epsilon_that_is_no_number_breaks_no_plot(epsilon: str) -> None:
    found, content = shown(private(1, epsilon))
    assert not found.clean
    Parsed(content)
    assert "nan" not in content.replace("nance", "")
    assert "inf" not in content


def test_an_audit_that_verified_nothing_has_a_page_too() -> None:
    empty = replace(history(), envelopes=(b"{}",), checkpoint=b"x")
    found = audit(empty, party_keys())
    assert (found.cosigned, found.tasks, len(found.findings)) == (None, (), 2)
    assert "an unknown federation" in Parsed(page(found)).text
