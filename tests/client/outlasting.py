"""A participant in a process of its own that loses its coordinator: `test_restart.py` starts it and leads it on."""

import sys

from triskele.config import ParticipantConfig
from triskele.connection import Connections, RetryPolicy
from triskele.coordinator import Coordinator
from triskele.credentials import Credentials, trusted_parties
from triskele.errors import Unavailable
from triskele.limits import DEFAULT_LIMITS

ONCE = RetryPolicy(attempts=1)
PATIENT = RetryPolicy(attempts=1000, total=30.0, longest_wait=1.0)


def said(word: str) -> None:
    print(word, flush=True)
    sys.stdin.readline()


def lose(coordinator: Coordinator) -> None:
    """Call until it has failed a few times: the connection is lost then, and every call fails at once."""
    failures = 0
    while failures < 3:
        try:
            coordinator.tasks()
        except Unavailable:
            failures += 1


config = ParticipantConfig.load(sys.argv[1])
credentials = Credentials.renewed(config)
connections = Connections(config, lambda: credentials.current().channel)
Coordinator(connections, trusted_parties(config), DEFAULT_LIMITS, ONCE).tasks()
said("reached")
lose(Coordinator(connections, trusted_parties(config), DEFAULT_LIMITS, ONCE))
said("lost")
Coordinator(connections, trusted_parties(config), DEFAULT_LIMITS, connections.patient(PATIENT)).tasks()
said("back")
connections.close()
