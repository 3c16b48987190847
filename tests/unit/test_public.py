from __future__ import annotations

import json
import subprocess
import sys

import pytest

import batchcl

HEAVY = ("aioboto3", "boto3", "botocore", "obstore", "polars", "pyarrow", "sklearn")


def modules_after(code: str) -> set[str]:
    """The top-level modules loaded in a new process after `code`."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    return set(json.loads(done.stdout))


def test_the_public_names_are_sorted_and_named_once() -> None:
    assert batchcl.__all__ == sorted(set(batchcl.__all__))


@pytest.mark.parametrize("name", batchcl.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    found = getattr(batchcl, name)
    assert found is not None
    if isinstance(found, type):
        assert found.__name__ == name


def test_the_errors_of_the_public_surface_are_one_tree() -> None:
    errors = [getattr(batchcl, name) for name in batchcl.__all__ if name.endswith("Error")]
    assert len(errors) > 5
    assert all(issubclass(error, batchcl.BatchclError) for error in errors)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = batchcl.nope
    with pytest.raises(ImportError):
        exec("from batchcl import nope")


def test_importing_the_package_loads_no_heavy_library() -> None:
    assert not modules_after("import batchcl") & set(HEAVY)
    assert not modules_after("import batchcl; batchcl.UsageError") & set(HEAVY)


def test_the_command_line_loads_no_heavy_library_at_start() -> None:
    assert not modules_after("import batchcl.cli.app") & set(HEAVY)


def test_what_is_used_is_loaded() -> None:
    assert "pydantic" in modules_after("import batchcl; batchcl.Job")
