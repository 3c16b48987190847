"""What an error answer says: the JSON of Rekognition and the XML of S3, in all their spellings."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

__all__ = ["Refusal", "read_refusal"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error answer's code without its namespace, and its own words. Where it names no code: the HTTP status."""

    code: str
    message: str


def read_refusal(status: int, headers: Mapping[str, str], body: bytes) -> Refusal:
    """The code and message of an answer with `status` 300 or above. Raises nothing, whatever the body is."""
    named = headers.get("x-amzn-ErrorType", "")
    code, message = _from_xml(body) if body.lstrip()[:1] == b"<" else _from_json(body)
    code = (code or named).partition(":")[0].rpartition("#")[2]
    return Refusal(code or str(status), message)


def _from_json(body: bytes) -> tuple[str, str]:
    try:
        said: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "", ""
    if not isinstance(said, dict):
        return "", ""
    code = said.get("__type") or said.get("Code") or said.get("code")
    message = said.get("Message") or said.get("message") or said.get("errorMessage")
    return (code if isinstance(code, str) else ""), (message if isinstance(message, str) else "")


def _from_xml(body: bytes) -> tuple[str, str]:
    try:
        root = ET.fromstring(body)  # noqa: S314 - expat expands no external entities; the answer is bounded
    except ET.ParseError:
        return "", ""
    if root.tag.rpartition("}")[2] != "Error":
        return "", ""
    said = {child.tag.rpartition("}")[2]: child.text or "" for child in root}
    return said.get("Code", ""), said.get("Message", "")
