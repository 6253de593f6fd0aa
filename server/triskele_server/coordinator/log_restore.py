"""Give a database that was put back to an earlier day the entries of the log that it lost, from a saved copy.

    python -m triskele_server.coordinator.log_restore LOG.jsonl --config coordinator.toml --keys DIR

The copy is what `triskele audit --save` wrote, or any participant or auditor has. It must be sound under the parties'
keys and continue what the database holds; then the parties cosign the log again. Run it while no coordinator runs.
"""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from triskele.cli import exit_code
from triskele.errors import Conflict, PartyFault, TriskeleError
from triskele.ids import RoundNumber
from triskele.transparency.audit import audit
from triskele.transparency.certificate import open_envelope
from triskele.transparency.merkle import leaf_hash
from triskele.transparency.party_keys import PartyKeys
from triskele.transparency.saved_log import SavedLog
from triskele_server import logs
from triskele_server.config import load_coordinator
from triskele_server.coordinator.claim import claimed
from triskele_server.coordinator.log import Log
from triskele_server.coordinator.rounds import RoundId
from triskele_server.coordinator.store import Store

app = typer.Typer(help=__doc__, add_completion=False)


def restore(store: Store, federation: str, saved: SavedLog, keys: PartyKeys) -> int:
    """Append the entries of `saved` that the store's log lacks; returns how many.

    Raises PartyFault if the copy is not sound, Conflict if it does not continue the store's log.
    """
    found = audit(saved, keys, federation)
    if found.findings or found.cosigned is None:
        raise PartyFault(f"the saved log is not sound: {found.findings[0].what}")
    log = Log(store, federation)
    before = log.size
    if before > len(saved.envelopes):
        raise Conflict(
            f"the saved log has {len(saved.envelopes)} entries, the database {before}: a newer one is needed"
        )
    for entry, envelope in zip(log.entries(0, before), saved.envelopes, strict=False):
        if entry.leaf != leaf_hash(open_envelope(envelope).payload):
            raise Conflict(
                f"entry {entry.index} of the saved log is another than the database's: these are two logs, and nothing "
                "was changed. Find out who was shown which before anything else (docs/runbooks.md)"
            )
    by_index = {each.index: each.certificate for task in found.tasks for each in task.rounds}
    for index in range(before, len(saved.envelopes)):
        certificate = by_index[index]
        id_ = RoundId(certificate.task.digest, RoundNumber(certificate.round))
        if log.append(id_, saved.envelopes[index]) != index:
            raise Conflict(f"round {id_.number} of the saved log's entry {index} is elsewhere in the database's log")
    store.put_checkpoint(len(saved.envelopes), len(found.cosigned.times), saved.checkpoint)
    return len(saved.envelopes) - before


@app.command()
def main(
    saved: Annotated[Path, typer.Argument(help="The saved log.")],
    config: Annotated[Path, typer.Option("--config", help="coordinator.toml")],
    keys: Annotated[Path, typer.Option("--keys", help="Folder with party-0.pub, party-1.pub, party-2.pub.")],
) -> None:
    """Append what the database's log lacks; print how many entries, as JSON."""
    settings, trusted = load_coordinator(config), PartyKeys.from_folder(keys)
    with claimed(settings.database, patience=0.0), closing(Store(settings.database)) as store:
        added = restore(store, settings.federation, SavedLog.read(saved), trusted)
    typer.echo(json.dumps({"added": added}))


if __name__ == "__main__":
    logs.configure("coordinator")
    try:
        app()
    except TriskeleError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(exit_code(error))
