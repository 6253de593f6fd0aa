"""Shares at rest under a key: they come back, show nothing, open nowhere else, and damage is told."""

from __future__ import annotations

import os

import numpy as np
import pytest

from triskele.errors import ConfigurationError
from triskele.ids import ParticipantId, RoundNumber, ShareIndex, TaskDigest
from triskele_server.at_rest import (
    BLOCK_BYTES,
    STORE_KEY,
    PlainFile,
    ShareVault,
    StoreDamaged,
    encrypted_size,
    plain_size,
)
from triskele_server.party.share_files import RoundKey, ShareFiles

WORDS = np.random.default_rng(1).integers(-(1 << 62), 1 << 62, 3 * BLOCK_BYTES // 8 + 5, dtype="<i8")
PLACE = b"task 1, round 2, alice, share 0"


@pytest.fixture
def vault() -> ShareVault:
    return ShareVault(os.urandom(32))


def written(vault, path, chunk=100_000):
    data = WORDS.tobytes()
    with vault.create(path, PLACE) as file:
        for start in range(0, len(data), chunk):
            file.append(data[start : start + chunk])
        file.finish()
    return path


def _read(share, start, stop):
    out = np.empty(stop - start, np.int64)
    share.stream(start).read_into(out)
    return out


@pytest.mark.parametrize("chunk", [1000, BLOCK_BYTES, 1 << 20])
def test_words_come_back_whatever_the_chunks_and_the_range_read(vault, tmp_path, chunk):
    share = vault.words(written(vault, tmp_path / "w", chunk), PLACE, len(WORDS))
    for start, stop in [(0, len(WORDS)), (0, 1), (8192, 16384), (8190, 16390), (len(WORDS) - 3, len(WORDS)), (4, 4)]:
        assert np.array_equal(_read(share, start, stop), WORDS[start:stop])


def test_file_shows_nothing_and_is_another_one_every_time(vault, tmp_path):
    first, second = (written(vault, tmp_path / name).read_bytes() for name in "ab")
    assert len(first) == encrypted_size(WORDS.nbytes)
    assert first[24:] != second[24:]
    assert not any(WORDS[i : i + 1].tobytes() in first for i in range(0, len(WORDS), 97))


def test_file_opens_under_no_other_key_and_for_no_other_place(vault, tmp_path):
    path = written(vault, tmp_path / "w")
    for other, place in [(ShareVault(bytes(32)), PLACE), (vault, PLACE + b"1")]:
        with pytest.raises(StoreDamaged, match=STORE_KEY):
            _read(other.words(path, place, len(WORDS)), 0, 2)
    with pytest.raises(StoreDamaged):
        vault.words(path, PLACE, len(WORDS) - 1)


def test_blocks_cannot_change_places(vault, tmp_path):
    path = written(vault, tmp_path / "w")
    data, slot = path.read_bytes(), BLOCK_BYTES + 28
    path.write_bytes(data[:24] + data[24 + slot : 24 + 2 * slot] + data[24 : 24 + slot] + data[24 + 2 * slot :])
    share = vault.words(path, PLACE, len(WORDS))
    assert np.array_equal(_read(share, 2 * 8192, 3 * 8192), WORDS[2 * 8192 : 3 * 8192])
    with pytest.raises(StoreDamaged):
        _read(share, 0, 2)


def test_upload_goes_on_from_the_last_whole_block(vault, tmp_path):
    """What a crash leaves: the file is longer than what the store was told, and its end may be torn."""
    path, data = tmp_path / "w", WORDS.tobytes()
    with vault.create(path, PLACE) as file:
        file.append(data[: BLOCK_BYTES + 777])
        committed = file.sync()
    assert committed == BLOCK_BYTES
    with path.open("ab") as torn:
        torn.write(b"torn" * 100)
    assert plain_size(path.stat().st_size) >= committed
    with vault.resume(path, PLACE, committed) as file:
        assert b"".join(file.stored()) == data[:committed]
        file.append(data[committed:])
        file.finish()
    assert np.array_equal(_read(vault.words(path, PLACE, len(WORDS)), 0, len(WORDS)), WORDS)


def test_plain_file_goes_on_from_any_byte(tmp_path):
    file = PlainFile.at(tmp_path / "w", 0)
    file.append(b"0123456789")
    assert file.sync() == 10
    file.close()
    again = PlainFile.at(tmp_path / "w", 4)
    assert b"".join(again.stored()) == b"0123"
    again.append(b"x")
    again.close()
    assert (tmp_path / "w").read_bytes() == b"0123x"


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 5 * BLOCK_BYTES + 9])
def test_sizes_are_each_others_inverse(size):
    assert plain_size(encrypted_size(size)) == size


@pytest.mark.parametrize("text", ["00", "zz" * 32, "0" * 63])
def test_key_that_is_none_is_refused_without_being_shown(monkeypatch, text):
    monkeypatch.setenv(STORE_KEY, text)
    with pytest.raises(ConfigurationError, match=STORE_KEY) as caught:
        ShareVault.from_environment()
    assert text not in str(caught.value)
    monkeypatch.delenv(STORE_KEY)
    assert ShareVault.from_environment() is None


def test_folder_written_under_a_key_is_refused_without_it_and_under_another(vault, tmp_path):
    ShareFiles(tmp_path, vault)
    ShareFiles(tmp_path, vault)
    for other in (None, ShareVault(bytes(32))):
        with pytest.raises(ConfigurationError, match="store key"):
            ShareFiles(tmp_path, other)


def test_seeds_are_encrypted_too(vault, tmp_path):
    files = ShareFiles(tmp_path, vault)
    key = RoundKey(TaskDigest(bytes(32)), RoundNumber(1))
    files.make_folder(key)
    seed = os.urandom(16)
    files.write_seeds(key, ParticipantId("alice"), {ShareIndex(1): seed})
    path = files.share(key, ParticipantId("alice"), ShareIndex(1), seed=True)
    assert files.has_seed(path)
    assert seed not in path.read_bytes()
    assert repr(vault) == "ShareVault(...)"
