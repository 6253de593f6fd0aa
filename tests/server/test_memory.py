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


_STEP = """
from pathlib import Path
from triskele_server.memory import give_freed_pages_back, keep_freed_pages
def own():
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon"))
keep_freed_pages()
pieces = [bytes(b"x") * (1 << 16) for _ in range(512)]
kept = pieces[::64]
before = own()
del pieces
kept_pages = own()
give_freed_pages_back()
print(before - kept_pages, before - own())
"""

# mallopt is glibc's own: elsewhere keep_freed_pages does nothing, and there is nothing to be tested.
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")


@glibc
def test_what_one_step_has_freed_is_given_back_before_the_next() -> None:
    """Though something lies above it: 80 MB of a worker with 1,000 submissions were such gaps."""
    done = subprocess.run([sys.executable, "-c", _STEP], capture_output=True, check=True, text=True)
    by_itself, given_back = map(int, done.stdout.split())
    assert by_itself < 16 << 20, "or there is no need to ask any more"
    assert given_back > 24 << 20


@glibc
def test_chunks_of_a_stream_take_no_fresh_pages() -> None:
    pages = 20 * 8 * (1 << 19) // 4096
    assert page_faults("") > pages // 4, "or this process needs no advice any more"
    assert page_faults("keep_freed_pages()") < pages // 100
