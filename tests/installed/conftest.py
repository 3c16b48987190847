"""These tests need a package index and variables that `make installed` and `make dist` set.

`BATCHCL_INSTALLERS` is a directory with uv and pipx, `BATCHCL_DIST` one with an sdist and a wheel.
"""

from __future__ import annotations

import os

_NEEDED = {"test_installed.py": "BATCHCL_INSTALLERS", "test_dist.py": "BATCHCL_DIST"}

collect_ignore = [name for name, variable in _NEEDED.items() if not os.environ.get(variable)]
