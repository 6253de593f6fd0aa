"""A server that was away is found again, by a process in which nobody but the one who waits for it is in a call."""

import os
import subprocess
import sys
from pathlib import Path

from .certificates import write_participant

OUTLASTING = Path(__file__).with_name("outlasting.py")
# gRPC's own look at idle connections hides now and then what it is that gets a handshake done
WITHOUT_GRPCS_LOOK = {"GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS": "0"}


def test_connection_is_made_anew_while_everybody_pauses(federation, authority, tmp_path):
    config = write_participant(tmp_path / "alice", authority, "alice", federation.address)
    command = [sys.executable, str(OUTLASTING), str(config)]
    environment = os.environ | WITHOUT_GRPCS_LOOK
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
    ) as process:

        def heard(word):
            assert process.stdout.readline().strip() == word

        def go_on():
            process.stdin.write("\n")

        heard("reached")
        federation.stop_coordinator()
        go_on()
        heard("lost")
        federation.start_coordinator()
        go_on()
        heard("back")
        go_on()
        assert process.wait(20) == 0
