"""A party whose frames of the other parties are held back, as on a long line: only `triskele bench` runs it.

The delay is an argument of this module's process, not of a configuration: `triskele party` has no such option, and
party.toml no such key, so no deployment can be slowed down by one.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from triskele_server.config import load_party
from triskele_server.party.process import serve


def main() -> None:
    """Run a party until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--link-delay", type=float, required=True, help="Seconds that each frame is held back.")
    given = parser.parse_args()
    asyncio.run(serve(load_party(given.config), link_delay=given.link_delay))


if __name__ == "__main__":
    main()
