"""The Grafana dashboards, written down once: `python deploy/grafana/dashboards.py` writes the JSON files beside it.

Import the JSON, or provision it; each asks for a Prometheus data source. Panels show what docs/metrics.md lists.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from panels import Dashboard, Panel

_RATE: Final = "[$__rate_interval]"
ME: Final = 'instance=~"$instance"'


def quantile(share: float, metric: str, by: str, window: str = "[1h]") -> str:
    """The quantile of a histogram, over an hour: rounds are few."""
    return f"histogram_quantile({share}, sum by (le, {by}) (rate({metric}_bucket{{{ME}}}{window})))"


def per(what: str, count: str, by: str) -> str:
    """The mean over an hour of one counter to another."""
    return f"sum by ({by}) (increase({what}{{{ME}}}[1h])) / sum by ({by}) (increase({count}{{{ME}}}[1h]))"


def increase(metric: str, by: str, labels: str = "", window: str = _RATE) -> str:
    """What a counter grew by."""
    return f"sum by ({by}) (increase({metric}{{{', '.join(filter(None, (ME, labels)))}}}{window}))"


def rate(metric: str, by: str, labels: str = "") -> str:
    """What a counter grows by, each second."""
    return f"sum by ({by}) (rate({metric}{{{', '.join(filter(None, (ME, labels)))}}}{_RATE}))"


_ENDS: Final = 'state=~"RELEASED|FAILED|EXPIRED"'
_UPLOAD: Final = 'method=~"/triskele.v1.Party/Upload(Sealed)?"'
_POISONING: Final = Panel(
    "Not accepted, by task",
    "Share of the last released round's submissions that were invalid or that the rule left out, from opened values; "
    "tasks with hidden decisions do not appear. Many rules leave out a fixed part: look for a change.",
    "percentunit",
    [(f"triskele_coordinator_poisoning_ratio{{{ME}}}", "{{task}}")],
    most=1,
)
_PRIVACY: Final = Panel(
    "Privacy spent, by task",
    "Epsilon that a task's rounds have spent of its budget_epsilon, at the task's delta. Tasks without noise, or whose "
    "noise guarantees nothing (docs/privacy.md), do not appear; 0 if there is no other.",
    "short",
    [(f"triskele_coordinator_privacy_epsilon_spent{{{ME}}} or on() vector(0)", "{{task}}")],
)
_CERTIFICATES: Final = Panel(
    "Certificates end in",
    "Time left of each member's certificate and of the authority's. Renew the first with cert-manager or `triskele "
    "provision rotate`; processes take new files without a restart.",
    "s",
    [(f"triskele_certificate_expiry_timestamp_seconds{{{ME}}} - time()", "{{instance}} {{certificate}}")],
    kind="bargauge",
    red_below=14 * 86400,
)
_DISK: Final = Panel(
    "Disk free",
    "Free share of the disk that the data folder is on. A party refuses uploads below its reserve (free_disk_bytes).",
    "percentunit",
    [(f"triskele_disk_free_bytes{{{ME}}} / triskele_disk_size_bytes{{{ME}}}", "{{instance}}")],
    most=1,
)
_FAILURES: Final = Panel(
    "Rounds without a result, by reason",
    "Rounds that failed or expired. docs/runbooks.md#triskeleroundsfailing says what each reason means.",
    "short",
    [(increase("triskele_coordinator_rounds_failed_total", "reason", window="[1h]"), "{{reason}}")],
    stacked=True,
)
_PHASES: Final = Panel(
    "Time per state (median, coordinator)",
    "How long rounds stayed in a state before the next, over an hour: OPEN is waiting for participants.",
    "s",
    [(quantile(0.5, "triskele_coordinator_round_phase_seconds", "state"), "{{state}}")],
)
_COHORT: Final = Panel(
    "Cohort",
    "Participants that came as far as a stage, mean over an hour. `accepted` only where decisions are public.",
    "short",
    [(per("triskele_coordinator_cohort_participants_sum", "triskele_coordinator_cohort_participants_count", "stage"),
      "{{stage}}")],
)  # fmt: skip

OVERVIEW: Final = Dashboard(
    "triskele-overview",
    "Triskele: federation",
    "All members at a glance: who is up, how rounds end, who takes part.",
    [
        (
            "Now",
            [
                Panel("Members up", "Members that answer this Prometheus.", "short",
                      [('sum(up{job=~"triskele-(coordinator|party)", instance=~"$instance"})', "up")],
                      kind="stat", width=4, red_below=1),
                Panel("Parties reachable", "Parties that answered the coordinator's last call; a round needs three.",
                      "short", [(f"sum by (instance) (triskele_coordinator_party_reachable{{{ME}}})", "{{instance}}")],
                      kind="stat", width=4, red_below=3),
                Panel("Tasks running", "Tasks that have rounds left.", "short",
                      [(f"sum(triskele_coordinator_tasks_running{{{ME}}})", "tasks")], kind="stat", width=4),
                Panel("Released in an hour", "Rounds that gave an aggregate.", "short",
                      [(increase("triskele_coordinator_round_states_total", "instance", 'state="RELEASED"', "[1h]"),
                        "{{instance}}")], kind="stat", width=4),
                Panel("Without a result in an hour", "Rounds that failed or expired.", "short",
                      [(increase("triskele_coordinator_round_states_total", "instance", 'state=~"FAILED|EXPIRED"',
                                 "[1h]"), "{{instance}}")], kind="stat", width=4, red_from=1),
                Panel("Alerts", "Alerts of Triskele that fire now.", "short",
                      [('count(ALERTS{alertname=~"Triskele.*", alertstate="firing"}) or vector(0)', "firing")],
                      kind="stat", width=4, red_from=1),
            ],
        ),
        (
            "Rounds",
            [
                Panel("Rounds ended", "Rounds that came to an end, by how.", "short",
                      [(increase("triskele_coordinator_round_states_total", "state", _ENDS), "{{state}}")],
                      stacked=True),
                Panel("Rounds in progress", "By the state that they are in.", "short",
                      [(f"sum by (state) (triskele_coordinator_rounds{{{ME}}})", "{{state}}")], stacked=True),
                _PHASES,
                _COHORT,
                _POISONING,
                _PRIVACY,
                _FAILURES,
            ],
        ),
        (
            "Members",
            [
                Panel("Versions", "What runs where. Members of one federation speak one protocol.", "short",
                      [(f"triskele_build_info{{{ME}}}", "")], kind="table"),
                _CERTIFICATES,
                _DISK,
                Panel("Released aggregates", "Bytes on the coordinator's disk; they stay.", "bytes",
                      [(f"triskele_coordinator_results_bytes{{{ME}}}", "{{instance}}")]),
                Panel("Uploads received", "Bytes of shares that participants sent, by party.", "Bps",
                      [(rate("triskele_party_upload_bytes_total", "instance"), "{{instance}}")]),
                Panel("Between the parties", "Payload bytes of the computation, by sender.", "Bps",
                      [(rate("triskele_mpc_sent_bytes_total", "instance"), "{{instance}}")]),
                Panel("Calls to parties that failed", "By party and gRPC status, as the callers see it.", "short",
                      [(rate("triskele_grpc_client_handled_total", "party, code", 'code!="OK"'),
                        "party {{party}} {{code}}")]),
            ],
        ),
    ],
    by="triskele_build_info",
)  # fmt: skip

PARTY: Final = Dashboard(
    "triskele-party",
    "Triskele: party",
    "One party, or several side by side: intake, computation, storage, calls.",
    [
        (
            "Intake",
            [
                Panel("Uploads", "By what became of them. A participant resumes a broken-off stream; expired ones "
                      "were not complete when their round closed.", "short",
                      [(increase("triskele_party_uploads_total", "outcome"), "{{outcome}}")], stacked=True),
                Panel("Uploads refused, by reason", "Reasons are those of docs/reference/errors.md.", "short",
                      [(increase("triskele_party_uploads_total", "reason", 'outcome="refused"'), "{{reason}}")],
                      stacked=True),
                Panel("Relays", "Heavy shares that one holder brings the other. mismatch: other words than the "
                      "participant signed for; the log names the party that brought them.", "short",
                      [(increase("triskele_party_relays_total", "outcome"), "{{outcome}}")]),
                Panel("Relays waiting", "Heavy shares that are still to be brought to the other holder.", "short",
                      [(f"triskele_party_relays_waiting{{{ME}}}", "{{instance}}")]),
                Panel("Uploads running", "Streams open now.", "short",
                      [(f"sum by (instance) (triskele_grpc_server_in_progress{{{ME}, {_UPLOAD}}})", "{{instance}}")]),
                Panel("Bytes received", "Heavy shares written to disk.", "Bps",
                      [(rate("triskele_party_upload_bytes_total", "instance"), "{{instance}}")]),
            ],
        ),
        (
            "Computation",
            [
                Panel("Rounds held", "Rounds in progress, by state.", "short",
                      [(f"sum by (instance, state) (triskele_party_rounds{{{ME}}})", "{{instance}} {{state}}")]),
                Panel("Rounds ended here", "By how.", "short",
                      [(increase("triskele_party_round_states_total", "state", _ENDS), "{{state}}")], stacked=True),
                Panel("Rounds computing", "Attempts that run now.", "short",
                      [(f"triskele_party_rounds_running{{{ME}}}", "{{instance}}")]),
                Panel("Attempts", "Begun, and lost because a party fell silent.", "short",
                      [(increase("triskele_party_attempts_total", "instance"), "{{instance}} begun"),
                       (increase("triskele_party_attempts_lost_total", "instance"), "{{instance}} lost")]),
                Panel("Worker restarts", "Times that the computing process ended by itself.", "short",
                      [(increase("triskele_party_worker_restarts_total", "instance", window="[1h]"), "{{instance}}")]),
                Panel("Time per state (95 %)", "How long rounds stayed in a state here, over an hour.", "s",
                      [(quantile(0.95, "triskele_party_round_phase_seconds", "state"), "{{state}}")]),
            ],
        ),
        (
            "Storage and machine",
            [
                _DISK,
                Panel("Held on disk", "Shares, which are deleted when their round ends; the database.",
                      "bytes", [(f"triskele_party_shares_bytes{{{ME}}}", "{{instance}} shares"),
                                (f"triskele_database_bytes{{{ME}}}", "{{instance}} database")]),
                Panel("Memory", "Resident memory of the serving process; the computing process is not in it.", "bytes",
                      [(f'process_resident_memory_bytes{{{ME}, job=~"triskele-.*"}}', "{{instance}}")]),
                Panel("Processor", "Of the serving process; 1 is one core.", "short",
                      [(f'rate(process_cpu_seconds_total{{{ME}, job=~"triskele-.*"}}{_RATE})', "{{instance}}")]),
                Panel("Open files", "Of the serving process.", "short",
                      [(f'process_open_fds{{{ME}, job=~"triskele-.*"}}', "{{instance}}")]),
            ],
        ),
        (
            "Calls served",
            [
                Panel("Calls", "Ended, by method.", "reqps",
                      [(rate("triskele_grpc_server_handled_total", "method"), "{{method}}")]),
                Panel("Calls that did not end well", "By gRPC status.", "reqps",
                      [(rate("triskele_grpc_server_handled_total", "code", 'code!="OK"'), "{{code}}")]),
                Panel("Duration (95 %)", "Over an hour, by method; streams last as long as their round.", "s",
                      [(quantile(0.95, "triskele_grpc_server_handling_seconds", "method"), "{{method}}")]),
                Panel("Bytes in", "Messages received, by method.", "Bps",
                      [(rate("triskele_grpc_server_received_bytes_total", "method"), "{{method}}")]),
                Panel("Bytes out", "Messages sent, by method.", "Bps",
                      [(rate("triskele_grpc_server_sent_bytes_total", "method"), "{{method}}")]),
                Panel("Calls begun", "By method.", "reqps",
                      [(rate("triskele_grpc_server_started_total", "method"), "{{method}}")]),
            ],
        ),
    ],
    by='triskele_build_info{role="party"}',
)  # fmt: skip

_STEPS: Final = "triskele_mpc_step_seconds"
ROUND: Final = Dashboard(
    "triskele-round",
    "Triskele: rounds",
    "Where the time of rounds goes, step by step. No metric names a round: `triskele status`, `triskele rounds` and "
    "the logs (field `round`) do.",
    [
        (
            "From opening to release",
            [
                _PHASES,
                Panel("Time per state (95 %, coordinator)", "The slow rounds of the last hour.", "s",
                      [(quantile(0.95, "triskele_coordinator_round_phase_seconds", "state"), "{{state}}")]),
                Panel("States entered", "Rounds that came to a state.", "short",
                      [(increase("triskele_coordinator_round_states_total", "state"), "{{state}}")]),
                _COHORT,
                Panel("Submissions that did not enter the filter", "By reason.", "short",
                      [(increase("triskele_coordinator_submissions_refused_total", "reason", window="[1h]"),
                        "{{reason}}")], stacked=True),
                _FAILURES,
                Panel("Attempts at the computation", "First, and repeated because a party fell silent.", "short",
                      [(increase("triskele_coordinator_attempts_total", "kind", window="[1h]"), "{{kind}}")]),
            ],
        ),
        (
            "Steps of the computation, at the parties",
            [
                Panel("Step duration (median)", "Of each step, over an hour, waiting for the peers included. Steps: "
                      "docs/protocol.md.", "s", [(quantile(0.5, _STEPS, "step"), "{{step}}")]),
                Panel("Step duration (95 %)", "Of each step, over an hour.", "s",
                      [(quantile(0.95, _STEPS, "step"), "{{step}}")]),
                Panel("Computation, mean, by party", "The whole computation. One slow party makes others wait.", "s",
                      [(f"sum by (instance) (increase({_STEPS}_sum{{{ME}}}[1h])) / "
                        f'sum by (instance) (increase({_STEPS}_count{{{ME}, step="combine"}}[1h]))', "{{instance}}")]),
                Panel("Communication rounds per step", "Times that a step waited for a peer.", "short",
                      [(per("triskele_mpc_communication_rounds_total", f"{_STEPS}_count", "step"), "{{step}}")]),
                Panel("Bytes sent per step", "Payload to both peers, by one party.", "bytes",
                      [(per("triskele_mpc_sent_bytes_total", f"{_STEPS}_count", "step"), "{{step}}")]),
                Panel("Steps ended", "By step. Where the number drops from one step to the next, attempts are lost.",
                      "short", [(increase(f"{_STEPS}_count", "step"), "{{step}}")]),
            ],
        ),
        (
            "Calls between members",
            [
                Panel("Calls begun", "By method and party called.", "reqps",
                      [(rate("triskele_grpc_client_started_total", "method, party"), "{{method}} at {{party}}")]),
                Panel("Calls ended", "By party called and gRPC status.", "reqps",
                      [(rate("triskele_grpc_client_handled_total", "party, code"), "party {{party}} {{code}}")]),
                Panel("Duration (95 %)", "By party called, without the parties' own streams.", "s",
                      [('histogram_quantile(0.95, sum by (le, party) (rate(triskele_grpc_client_handling_seconds_bucket'
                        f'{{{ME}, method!~".*Exchange"}}[1h])))', "party {{party}}")]),
                Panel("Bytes sent to a party", "Messages of calls, by party called.", "Bps",
                      [(rate("triskele_grpc_client_sent_bytes_total", "party"), "party {{party}}")]),
                Panel("Bytes received from a party", "Messages of replies, by party called.", "Bps",
                      [(rate("triskele_grpc_client_received_bytes_total", "party"), "party {{party}}")]),
            ],
        ),
    ],
    by="triskele_build_info",
)  # fmt: skip

SECURITY: Final = Dashboard(
    "triskele-security",
    "Triskele: security",
    "Refusals, replays, failed authentication, poisoning. Handshakes that fail in TLS reach no counter: the logs of "
    "a gateway or firewall show them.",
    [
        (
            "Who is refused",
            [
                Panel("Refused calls, by reason", "All members.", "short",
                      [(increase("triskele_refusals_total", "reason"), "{{reason}}")], stacked=True),
                Panel("Forbidden, by member", "A certificate of the federation, used for what its role may not do, or "
                      "on the deny list.", "short",
                      [(increase("triskele_refusals_total", "instance", 'reason="forbidden"'), "{{instance}}")]),
                Panel("Replays, by kind", "another_participant: made by somebody else. another_manifest: a "
                      "second update of one participant. another_round: sealed for another round. repeated: "
                      "complete already, as after a lost answer.", "short",
                      [(increase("triskele_party_replays_total", "kind"), "{{kind}}")]),
                Panel("Uploads refused, by party", "All reasons.", "short",
                      [(increase("triskele_party_uploads_total", "instance", 'outcome="refused"'), "{{instance}}")]),
                Panel("Uploads taken over, broken off, expired", "Streams that did not come to their end.", "short",
                      [(increase("triskele_party_uploads_total", "outcome", 'outcome=~"taken_over|broken_off|expired"'),
                        "{{outcome}}")]),
                Panel("Deny list", "Entries in force, and lines that cannot be used.", "short",
                      [(f"triskele_deny_list_entries{{{ME}}}", "{{instance}} entries"),
                       (f"triskele_deny_list_problems{{{ME}}}", "{{instance}} problems")]),
            ],
        ),
        (
            "What was submitted",
            [
                _POISONING,
                Panel("Forged submissions", "No unchanged client makes such ones.", "short",
                      [(increase("triskele_coordinator_submissions_refused_total", "reason",
                                 'reason=~"failed_validity_check|manifests_differ|not_enrolled|wrong_slot"', "[1h]"),
                        "{{reason}}")], stacked=True),
                Panel("Parties that disagree", "Rounds that ended because a party sent what the others cannot confirm.",
                      "short",
                      [(increase("triskele_coordinator_rounds_failed_total", "reason",
                                 'reason=~"outcomes_differ|outcome_invalid|output_not_served|party_broke_protocol|'
                                 'party_fault"', "[1h]"), "{{reason}}")], stacked=True, red_from=1),
            ],
        ),
        (
            "Trust",
            [
                _CERTIFICATES,
                Panel("Clocks", "Difference to Prometheus's clock.", "s",
                      [(f"abs(triskele_clock_timestamp_seconds{{{ME}}} - "
                        f"timestamp(triskele_clock_timestamp_seconds{{{ME}}}))", "{{instance}}")]),
                Panel("Worker restarts", "A worker that dies again and again on the same round may be attacked through "
                      "it.", "short",
                      [(increase("triskele_party_worker_restarts_total", "instance", window="[1h]"), "{{instance}}")]),
            ],
        ),
    ],
    by="triskele_build_info",
)  # fmt: skip

DASHBOARDS: Final = (OVERVIEW, PARTY, ROUND, SECURITY)


def text(dashboard: Dashboard) -> str:
    """The content of its file."""
    return json.dumps(dashboard.to_json(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for each in DASHBOARDS:
        (Path(__file__).parent / f"{each.uid}.json").write_text(text(each), "utf-8")
