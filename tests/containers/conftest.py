"""The image: this virtual environment, or the one that `make containers` builds by the Dockerfile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from containers.container import Image, skip_without_namespaces


@pytest.fixture(scope="session")
def image() -> Image:
    skip_without_namespaces()
    built = os.environ.get("BATCHCL_CONTAINER_IMAGE")
    return Image.of_this_environment() if built is None else Image.built(Path(built))
