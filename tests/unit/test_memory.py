from __future__ import annotations

import os
import subprocess
import sys

import pytest

from batchcl.__about__ import __version__

COMMAND = """
import os, sys
end = os._exit
def tell_and_end(code):
    import pyarrow
    print(pyarrow.default_memory_pool().backend_name, flush=True)
    end(code)
os._exit = tell_and_end
sys.argv = ["batchcl", "--version"]
from batchcl.__main__ import main
main()
"""
LOADED = "import sys, batchcl, batchcl.__main__; print('pyarrow' in sys.modules)"


def said(script: str, **env: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if name != "ARROW_DEFAULT_MEMORY_POOL"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=clean | env, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.splitlines()


def test_nothing_loads_arrow_before_its_pool_is_chosen() -> None:
    assert said(LOADED) == ["False"]


@pytest.mark.parametrize(("chosen", "pool"), [({}, "system"), ({"ARROW_DEFAULT_MEMORY_POOL": "mimalloc"}, "mimalloc")])
def test_the_command_has_arrow_use_the_systems_allocator_unless_the_user_chose_another(
    chosen: dict[str, str], pool: str
) -> None:
    assert said(COMMAND, **chosen) == [f"batchcl {__version__}", pool]
