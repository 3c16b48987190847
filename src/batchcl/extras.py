"""Optional packages: which extra has them, and how to install it with the installer that was used."""

from __future__ import annotations

import json
import os
import re
import sys
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from batchcl.errors import ErrorCode, UsageError

__all__ = ["EXTRAS", "install_command", "require_extra"]

EXTRAS: Final = {
    "images": {"PIL": "Pillow"},
    "analysis": {"numpy": "numpy", "scipy": "scipy"},
    "report": {"altair": "Altair", "jinja2": "Jinja2", "PIL": "Pillow", "vl_convert": "vl-convert-python"},
    "otel": {
        "opentelemetry.sdk.trace": "opentelemetry-sdk",
        "opentelemetry.exporter.otlp.proto.http": "opentelemetry-exporter-otlp-proto-http",
    },
    "emulator": {"numpy": "numpy", "PIL": "Pillow", "sklearn": "scikit-learn", "threadpoolctl": "threadpoolctl"},
}
"""Extra → module → package, for the packages that its commands import."""

_REQUIREMENT: Final = re.compile(r"batchcl\[([^\]]*)\]")


def require_extra(extra: str, what: str) -> None:
    """Raise `UsageError` if a package of `extra` is not installed; `what` needs it, such as a flag."""
    missing = [package for module, package in EXTRAS[extra].items() if _is_missing(module)]
    if missing:
        it = "it" if len(missing) == 1 else "them"
        raise UsageError(
            f"{what} needs {_listed(missing)}; install {it} with: {install_command(extra)}",
            code=ErrorCode.MISSING_EXTRA,
        )


def _is_missing(module: str) -> bool:
    try:
        return find_spec(module) is None
    except ModuleNotFoundError:  # its parent package is missing
        return True


def install_command(extra: str, *, prefix: str = sys.prefix, installed: Distribution | None = None) -> str:
    """The command that adds `extra` to this installation of batchcl.

    Args:
        extra: a key of `EXTRAS`.
        prefix: of the environment. `uv tool` and pipx record there what they installed. They replace the whole
            environment, so the command also names the extras that are installed.
        installed: the distribution, which records its installer and where it came from; None for the one that is
            imported.
    """
    uv_receipt, pipx_record = Path(prefix, "uv-receipt.toml"), Path(prefix, "pipx_metadata.json")
    if uv_receipt.exists():
        extras = _extras_of_uv_tool(uv_receipt)
        return f"uv tool install {_requirement({*extras, extra}, _origin(installed))}"
    if pipx_record.exists():
        extras = _extras_of_pipx(pipx_record)
        return f"pipx install --force {_requirement({*extras, extra}, _origin(installed))}"
    found = installed or _distribution()
    tool = "uv pip" if found is not None and (found.read_text("INSTALLER") or "").strip() == "uv" else "pip"
    return f"{tool} install {_requirement({extra}, None)}"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _requirement(extras: set[str], origin: str | None) -> str:
    quote = '"' if os.name == "nt" else "'"  # cmd.exe takes single quotes literally
    name = f"batchcl[{','.join(sorted(extras))}]"
    return f"{quote}{name if origin is None else f'{name} @ {origin}'}{quote}"


def _distribution() -> Distribution | None:
    try:
        return distribution("batchcl")
    except PackageNotFoundError:
        return None


def _origin(installed: Distribution | None) -> str | None:
    """The URL that batchcl was installed from; None for a package index."""
    found = installed or _distribution()
    record = None if found is None else found.read_text("direct_url.json")
    return None if record is None else str(json.loads(record)["url"])


def _extras_of_uv_tool(receipt: Path) -> list[str]:
    try:
        requirements = tomllib.loads(receipt.read_text(encoding="utf-8"))["tool"]["requirements"]
        return next(each.get("extras", []) for each in requirements if each["name"] == "batchcl")
    except (OSError, KeyError, TypeError, ValueError, StopIteration):
        return []  # the format is not documented


def _extras_of_pipx(record: Path) -> list[str]:
    try:
        installed_as = str(json.loads(record.read_text(encoding="utf-8"))["main_package"]["package_or_url"])
    except (OSError, KeyError, TypeError, ValueError):
        return []  # the format is not documented
    found = _REQUIREMENT.search(installed_as)
    return [] if found is None else [each.strip() for each in found[1].split(",")]
