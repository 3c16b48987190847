from __future__ import annotations

import json
import pydoc
import re
import subprocess
import sys

import pytest

import batchcl
from batchcl import errors

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
    kinds = [getattr(batchcl, name) for name in batchcl.__all__ if name.endswith("Error")]
    assert len(kinds) > 5
    assert all(issubclass(kind, batchcl.BatchclError) for kind in kinds)


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


def test_dir_and_help_show_every_public_name() -> None:
    assert set(batchcl.__all__) <= set(dir(batchcl))
    text = pydoc.plain(pydoc.render_doc(batchcl))
    missing = {name for name in batchcl.__all__ if not re.search(rf"\b{name}\b", text)}
    assert missing <= {"__version__"}  # which help shows as VERSION


def test_every_error_is_exported() -> None:
    kinds = [
        value for value in vars(errors).values() if isinstance(value, type) and value.__module__ == errors.__name__
    ]
    assert not [kind.__name__ for kind in kinds if kind.__name__ not in batchcl.__all__]


def test_every_type_in_a_public_signature_is_exported() -> None:
    """Functions' arguments and results, the fields of their types, and what the results' own methods return."""
    ours = {
        name
        for module in tuple(sys.modules.values())
        if module.__name__.startswith("batchcl.")
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__.startswith("batchcl.") and not name.startswith("_")
    }
    shown: dict[str, str] = {}
    for name in batchcl.__all__:
        value = getattr(batchcl, name)
        annotations = dict(getattr(value, "__annotations__", {}))
        for each, method in vars(value).items() if value in {batchcl.Results, batchcl.Plan, batchcl.Diagnosis} else ():
            annotations |= getattr(method, "__annotations__", {}) if not each.startswith("_") else {}
        for field, annotation in annotations.items():
            if not field.startswith("_"):
                shown |= {word: f"{name}.{field}" for word in re.findall(r"\w+", str(annotation)) if word in ours}
    assert {word: where for word, where in shown.items() if word not in batchcl.__all__} == {}
    assert {"Job", "Observer", "Estimate", "SessionRecord", "Label"} <= shown.keys()
