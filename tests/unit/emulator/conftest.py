"""Data sets, and servers with a running model, that the emulator's tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from batchcl.emulator.digits import DigitsDataset, write_digits
from unit.emulator.harness import Server, Trained, running_model, running_server


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> DigitsDataset:
    """300 training and 100 test pictures of one digit."""
    return write_digits(tmp_path_factory.mktemp("buckets"), bucket="pictures", train=300, test=100, seed=3)


@pytest.fixture(scope="session")
def small_digits(tmp_path_factory: pytest.TempPathFactory) -> DigitsDataset:
    """Enough to train something within a second."""
    return write_digits(tmp_path_factory.mktemp("small"), bucket="small", train=60, test=30, seed=4)


@pytest.fixture(scope="session")
def object_digits(tmp_path_factory: pytest.TempPathFactory) -> DigitsDataset:
    """Pictures of one to three digits with boxes."""
    return write_digits(tmp_path_factory.mktemp("objects"), bucket="objects", train=120, test=60, seed=5, objects=True)


@pytest.fixture(scope="session")
def classifier(digits: DigitsDataset) -> Iterator[Trained]:
    with running_model(digits) as trained:
        yield trained


@pytest.fixture(scope="session")
def locator(object_digits: DigitsDataset) -> Iterator[Trained]:
    with running_model(object_digits) as trained:
        yield trained


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Server]:
    """A server with one empty bucket, `bucket`."""
    (tmp_path / "bucket").mkdir()
    with running_server(buckets=tmp_path) as server:
        yield server
