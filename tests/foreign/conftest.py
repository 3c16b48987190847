"""These tests need `BATCHCL_FOREIGN_PYTHON`, a Python with the packages of requirements.txt: see `make foreign`."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("BATCHCL_FOREIGN_PYTHON") else ["*"]
