"""Submissions: the same bytes for the same update, independent randomness for anything else."""

import itertools
import struct

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from scipy import stats

from triskele.errors import InvalidUpdate
from triskele.ids import ParticipantId, RoundNumber, Slot
from triskele.keystream import derive
from triskele.manifest import verify
from triskele.sharing import reconstruct
from triskele.submission import encode_update, prepare
from triskele.task import TaskSpec

from .certificates import FROM, Authority

AUTHORITY = Authority()
ALICE = AUTHORITY.identity("participant", "alice")
CERTIFICATE, KEY = AUTHORITY.signing(ALICE)
_, OTHER_KEY = AUTHORITY.signing(ALICE)
PLAIN = TaskSpec("plain", 64, 2.0)
WEIGHTED = TaskSpec("weighted", 64, 2.0, max_weight=1000)


def vector(seed=0):
    return np.random.default_rng(seed).normal(size=64) / 8


def encoded(update=None, *, spec=PLAIN, number=1, weight=None, key=KEY, clip=True):
    update = vector() if update is None else update
    return encode_update(update, spec, RoundNumber(number), weight=weight, clip=clip, key=key)


def submission(one=None, slot=0):
    return prepare(
        one or encoded(), slot=Slot(slot), participant=ParticipantId("alice"), key=KEY, certificate=CERTIFICATE
    )


def test_same_update_gives_identical_bytes():
    one, other = submission(), submission()
    assert one.digest == other.digest
    assert one.signed == other.signed
    assert one.heavy_share == other.heavy_share
    assert one.sharing.seeds == other.sharing.seeds
    assert one.sharing.salts == other.sharing.salts


@pytest.mark.parametrize("in_place", [False, True])
def test_sharing_in_place_gives_the_same_submission_and_takes_the_words(in_place):
    one = encoded()
    words = one.words.copy()
    made = prepare(one, slot=Slot(1), participant=ParticipantId("alice"), key=KEY, certificate=CERTIFICATE,
                   in_place=in_place)  # fmt: skip
    assert (made.digest, bytes(made.heavy_share)) == (submission(slot=1).digest, bytes(submission(slot=1).heavy_share))
    assert np.array_equal(one.words, words) is not in_place


@pytest.mark.parametrize("format_", ["<f4", "<f8"])
def test_entropy_is_what_its_formula_says(format_):
    """Another one would be another submission for the same update: a client upgraded in a round would be refused."""
    length, secret = (1 << 16) + 5, KEY.private_bytes_raw()
    update = np.random.default_rng(3).normal(size=length).astype(format_) / length
    spec = TaskSpec("long", length, 2.0, max_weight=1000)
    context = b"triskele/v1/submission" + spec.digest + struct.pack(">Q", 7)
    told = format_.encode() + struct.pack(">Qd", 9, 0.0) + update.tobytes()
    tag = AESGCM(derive(secret, context)).encrypt(bytes(12), b"", told)
    assert encoded(update, spec=spec, number=7, weight=9).entropy == derive(secret, context + tag, 32)


def test_precision_of_the_same_values_does_not_matter():
    narrow = vector().astype(np.float32)
    assert encoded(narrow).entropy == encoded(narrow.astype(np.float64)).entropy
    assert np.array_equal(encoded(narrow).words, encoded(narrow.astype(np.float64)).words)
    wide = narrow.astype(np.float64)
    wide[-1] = np.nextafter(wide[-1], 1)  # not a float32 any more, and as one the same as before
    assert encoded(wide).entropy != encoded(narrow).entropy
    huge = np.full_like(wide, 1e100)
    assert encoded(huge).entropy != encoded(huge * 2).entropy, "beyond every float32"


def test_anything_else_gives_independent_randomness():
    nearly = vector()
    nearly[-1] = np.nextafter(nearly[-1], 1)
    variants = {
        "same": encoded(spec=WEIGHTED, weight=3),
        "update": encoded(nearly, spec=WEIGHTED, weight=3),
        "weight": encoded(spec=WEIGHTED, weight=4),
        "round": encoded(spec=WEIGHTED, weight=3, number=2),
        "task": encoded(),
        "key": encoded(spec=WEIGHTED, weight=3, key=OTHER_KEY),
    }
    secrets = {
        name: {one.entropy, *submission(one).sharing.seeds.values(), *submission(one).sharing.salts}
        for name, one in variants.items()
    }
    for one, other in itertools.combinations(secrets, 2):
        assert not secrets[one] & secrets[other], (one, other)


def test_difference_of_two_updates_does_not_show_in_their_heavy_shares():
    one, other = submission(encoded(vector(0))), submission(encoded(vector(1)))
    difference = one.sharing.heavy_words - other.sharing.heavy_words
    assert np.abs(difference.astype(np.float64)).min() > 2.0**40  # honest words differ by less than 2^22


def test_secrets_of_one_submission_are_all_different():
    one = encoded()
    sharing = submission(one).sharing
    secrets = [one.entropy[:16], derive(one.entropy, b"triskele/v1/rounding"), *sharing.seeds.values(), *sharing.salts]
    assert len(set(secrets)) == len(secrets)


@pytest.mark.parametrize("slot", [0, 1, 2, 5])
def test_shares_add_up_to_the_encoded_update_in_every_slot(slot):
    one = encoded()
    prepared = submission(one, slot)
    assert prepared.manifest.heavy == slot % 3
    assert np.array_equal(reconstruct(prepared.sharing, prepared.manifest.context), one.words)


def test_manifest_is_signed_for_the_participant():
    prepared = submission()
    manifest = verify(prepared.signed, authority=AUTHORITY.certificate, identity=ALICE.uri, now=FROM)
    assert manifest == prepared.manifest
    manifest.check_belongs_to(PLAIN, RoundNumber(1))


def test_weight_is_the_last_word():
    one = encoded(spec=WEIGHTED, weight=np.int32(7))
    assert one.words.shape == (65,)
    assert one.words[-1] == 7
    assert np.abs(one.words[:-1] * 2.0**-19 - vector()).max() < 2.0**-19


@pytest.mark.parametrize("weight", [0, 1000])
def test_weight_at_its_bounds_is_taken(weight):
    assert encoded(spec=WEIGHTED, weight=weight).words[-1] == weight


@pytest.mark.parametrize("weight", [None, -1, 1001, 2.0, True, np.True_, "7"])
def test_weight_that_the_task_does_not_take_is_refused(weight):
    with pytest.raises(InvalidUpdate, match="weight"):
        encoded(spec=WEIGHTED, weight=weight)


def test_weight_in_an_unweighted_task_is_refused():
    with pytest.raises(InvalidUpdate, match="takes no weight"):
        encoded(weight=1)


@pytest.mark.parametrize("shape", [(63,), (65,), (8, 8)])
def test_vector_of_another_shape_is_refused(shape):
    with pytest.raises(InvalidUpdate, match="does not fit"):
        encoded(np.zeros(shape))


def test_representations_hold_no_secrets():
    one = encoded()
    prepared = submission(one)
    text = repr(one) + repr(prepared) + repr(prepared.sharing)
    secrets = [one.entropy, *prepared.sharing.seeds.values(), *prepared.sharing.salts]
    assert not any(repr(secret)[2:-1] in text or secret.hex() in text for secret in secrets)
    assert "words" not in text


# ---- noise of the participant's own ----------------------------------------------------------------------------------

LARGE = TaskSpec("large", 40_000, 2.0)


def noised(update, local_noise, *, number=1, clip=True, spec=LARGE):
    words = encode_update(
        update, spec, RoundNumber(number), weight=None, clip=clip, key=KEY, local_noise=local_noise
    ).words
    return words * (2.0 / 2**20)


def test_local_noise_is_gaussian_of_the_stated_scale_beside_the_clipped_update():
    update = np.zeros(LARGE.dimension)
    update[0] = 50.0  # clipped to 2
    found = noised(update, 0.001)
    shrunk = 2.0 / np.sqrt(4.0 + LARGE.dimension * 0.002**2)  # clipped once more
    assert found[0] == pytest.approx(2.0 * shrunk, abs=0.02)
    assert stats.kstest(found[1:] / (0.002 * shrunk), "norm").pvalue > 0.001
    assert abs(np.corrcoef(found[1:-1], found[2:])[0, 1]) < 0.02


@pytest.mark.parametrize("local_noise", [1e-3, 0.1, 10.0, 1000.0])
def test_noised_update_still_passes_the_check(local_noise):
    for norm in (0.0, 1.0, 3.0):
        update = np.full(LARGE.dimension, norm / np.sqrt(LARGE.dimension))
        assert np.linalg.norm(noised(update, local_noise)) <= 2.0 * (1 + 1e-3)


def test_repeating_a_noised_submission_adds_the_same_noise_and_anything_else_another():
    update = np.random.default_rng(1).normal(size=LARGE.dimension) / 200
    first = noised(update, 0.01)
    assert np.array_equal(first, noised(update, 0.01))  # two noises on one update could be averaged
    for other in (noised(update, 0.011), noised(update, 0.01, number=2)):
        assert abs(np.corrcoef(first - update, other - update)[0, 1]) < 0.6  # the update itself is shrunk in both
        assert not np.array_equal(first, other)


def test_local_noise_does_not_let_a_too_long_update_pass_where_clipping_is_forbidden():
    with pytest.raises(InvalidUpdate, match="above clip_norm"):
        noised(np.ones(LARGE.dimension), 0.1, clip=False)
    noised(np.ones(LARGE.dimension) / 200, 0.1, clip=False)


@pytest.mark.parametrize("local_noise", [0, -1.0, float("nan"), float("inf"), 1001, True, "1"])
def test_local_noise_that_is_none_is_refused(local_noise):
    with pytest.raises(InvalidUpdate, match="local_noise"):
        noised(np.zeros(LARGE.dimension), local_noise)
