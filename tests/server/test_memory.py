"""Freed pages are kept for the next chunk of a stream, in a process that asked for it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_STREAM = """
import resource
from triskele_server.memory import keep_freed_pages
{0}
def faults_of(streams):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(streams):
        chunks = [bytes(b"x") * (1 << 19) for _ in range(8)]
        del chunks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults_of(2)
print(faults_of(20))
"""


def page_faults(first: str) -> int:
    """Of eight chunks in flight, twenty times, after `first` has run."""
    code = _STREAM.format(first)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)


# mallopt is glibc's own: elsewhere keep_freed_pages does nothing, and there is nothing to be tested.
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_chunks_of_a_stream_take_no_fresh_pages() -> None:
    pages = 20 * 8 * (1 << 19) // 4096
    assert page_faults("") > pages // 4, "or this process needs no advice any more"
    assert page_faults("keep_freed_pages()") < pages // 100
