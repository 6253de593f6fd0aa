"""A repository of a model with three versions, and a device that trusts its publisher."""

import shutil

import pytest

from .publisher import Device, Publisher


@pytest.fixture
def publisher(tmp_path) -> Publisher:
    publisher = Publisher(tmp_path / "publisher")
    publisher.publish(0)
    publisher.publish(1, 1)
    publisher.publish(2, 2, 4)
    return publisher


@pytest.fixture
def device(publisher, tmp_path) -> Device:
    device = Device(tmp_path / "device")
    shutil.copytree(publisher.place / "trust", device.folder / "trust")
    return device
