"""These tests need `BATCHCL_INSTALLERS`, a directory with uv and pipx, and a package index: see `make installed`."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("BATCHCL_INSTALLERS") else ["test_*.py"]
