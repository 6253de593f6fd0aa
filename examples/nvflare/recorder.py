"""To see for yourself what reaches the server: keeps every result before anything of the server's touches it."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from nvflare.apis.filter import Filter
from nvflare.fuel.utils import fobs


class Recorder(Filter):
    """A task result filter for the server that writes each result, headers and all, to a file of its own."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def process(self, shareable: Any, fl_ctx: Any) -> Any:
        """The result unchanged."""
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        (Path(self.folder) / f"{uuid.uuid4().hex}.fobs").write_bytes(fobs.dumps(dict(shareable)))
        return shareable
