"""Decodes requests and encodes responses (JSON 1.1) with botocore's model of Rekognition.

Parameters, results, lengths, ranges, patterns and enumerations are those of the model, so they can't differ from the
API. Blobs are base64, timestamps seconds since the epoch, and integers and floats have 32 bits.
"""

from __future__ import annotations

import base64
import binascii
import ctypes
import datetime as dt
import re
from functools import cache, lru_cache
from typing import Any, Final

import orjson
from botocore.loaders import Loader
from botocore.model import ServiceModel
from botocore.validate import ParamValidator

from batchcl.emulator.errors import ApiError, invalid_parameter

__all__ = ["CONTENT_TYPE", "TARGET_PREFIX", "decode", "encode", "errors_of", "operation_names", "pattern_of"]
__all__ += ["float32", "service_model"]

CONTENT_TYPE: Final = "application/x-amz-json-1.1"
TARGET_PREFIX: Final = "RekognitionService."
_SHOWN: Final = 256
_BITS: Final = {"integer": 32, "long": 64}


@cache
def service_model() -> Any:
    """Botocore's model of Rekognition."""
    return ServiceModel(Loader().load_service_model("rekognition", "service-2"), "rekognition")


@cache
def operation_names() -> frozenset[str]:
    """All operations of Rekognition, including those that the emulator doesn't have."""
    return frozenset(service_model().operation_names)


@lru_cache(maxsize=128)
def _shapes(operation: str) -> tuple[Any, Any]:
    model = service_model().operation_model(operation)
    return model.input_shape, model.output_shape


def errors_of(operation: str) -> frozenset[str]:
    """Codes of the errors that the model documents for an operation."""
    return frozenset(shape.name for shape in service_model().operation_model(operation).error_shapes)


def pattern_of(shape: str) -> str:
    """The regular expression of a string shape."""
    return str(service_model().shape_for(shape).metadata["pattern"])


def decode(operation: str, body: bytes) -> dict[str, Any]:
    """The parameters in a request body, with blobs as bytes. Unknown members are dropped.

    Raises:
        ApiError: SerializationException if the body is not JSON of the right types, InvalidParameterException if a
            value is missing or violates a constraint of the model.
    """
    try:
        raw = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError:
        raise ApiError("SerializationException", "The request body is not valid JSON.") from None
    violations: list[str] = []
    parameters = _read(raw, _shapes(operation)[0], "", violations)
    if violations:
        plural = "error" if len(violations) == 1 else "errors"
        raise invalid_parameter(f"{len(violations)} validation {plural} detected: {'; '.join(violations)}")
    return dict(parameters)


def encode(operation: str, result: dict[str, Any]) -> bytes:
    """The body of a successful response.

    Raises:
        AssertionError: the result doesn't match the model: a bug in the emulator.
    """
    shape = _shapes(operation)[1]
    report = ParamValidator().validate(result, shape)
    assert not report.has_errors(), f"the result of {operation} does not match its model: {report.generate_report()}"
    return orjson.dumps(_write(result, shape))


def float32(value: float) -> float:
    """The nearest 32-bit float; the service has this precision for all floats."""
    return ctypes.c_float(value).value


def _read(value: Any, shape: Any, path: str, violations: list[str]) -> Any:
    readers = {"structure": _read_structure, "list": _read_list, "map": _read_map}
    reader = readers.get(shape.type_name)
    if reader is not None:
        return reader(value, shape, path, violations)
    value = _scalar(value, shape.type_name, path)
    violations.extend(_violations(value, shape, path))
    return value


def _read_structure(value: Any, shape: Any, path: str, violations: list[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong_type(path)
    known = {name: value[name] for name in shape.members if value.get(name) is not None}
    missing = (name for name in shape.required_members if name not in known)
    violations.extend(_violation(None, _join(path, name), "Member must not be null") for name in missing)
    return {name: _read(v, shape.members[name], _join(path, name), violations) for name, v in known.items()}


def _read_list(value: Any, shape: Any, path: str, violations: list[str]) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong_type(path)
    violations.extend(_violations(value, shape, path))
    return [_read(v, shape.member, f"{path}.{n}.member", violations) for n, v in enumerate(value, start=1)]


def _read_map(value: Any, shape: Any, path: str, violations: list[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong_type(path)
    violations.extend(_violations(value, shape, path))
    for key in value:
        violations.extend(_violations(key, shape.key, f"{path}.key"))
    return {k: _read(v, shape.value, f"{path}.{k}.value", violations) for k, v in value.items()}


def _scalar(value: Any, type_name: str, path: str) -> Any:
    if type_name == "blob" and isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise _wrong_type(path) from None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if type_name == "float" and number:
        return float32(value)
    if type_name == "double" and number:
        return float(value)
    if type_name in _BITS and number and value == int(value) and abs(value + 0.5) < 1 << (_BITS[type_name] - 1):
        return int(value)
    if type_name == "string" and isinstance(value, str):
        return value
    if type_name == "boolean" and isinstance(value, bool):
        return value
    if type_name == "timestamp" and number:
        return dt.datetime.fromtimestamp(value, dt.UTC)
    raise _wrong_type(path)


def _violations(value: Any, shape: Any, path: str) -> list[str]:
    """The constraints of `shape` that `value` violates. The maximum length of images is checked in image_rules."""
    rules = shape.metadata
    found = []
    if shape.type_name in {"string", "list", "map"}:
        found += _outside(len(value), rules, "length")
    elif shape.type_name in {"integer", "long", "float", "double"}:
        found += _outside(value, rules, "value")
    elif shape.type_name == "blob":
        found += _outside(len(value), {"min": 1} if shape.name == "ImageBlob" else rules, "length")
    if shape.type_name == "string":
        if "pattern" in rules and not _pattern(rules["pattern"]).fullmatch(value):
            found.append(f"Member must satisfy regular expression pattern: {rules['pattern']}")
        if "enum" in rules and value not in rules["enum"]:
            found.append(f"Member must satisfy enum value set: [{', '.join(rules['enum'])}]")
    return [_violation(value, path, rule) for rule in found]


def _outside(number: float, rules: dict[str, Any], what: str) -> list[str]:
    found = []
    if "min" in rules and number < rules["min"]:
        found.append(f"Member must have {what} greater than or equal to {rules['min']}")
    if "max" in rules and number > rules["max"]:
        found.append(f"Member must have {what} less than or equal to {rules['max']}")
    return found


@cache
def _pattern(java: str) -> re.Pattern[str]:
    """The model's patterns are in Java's syntax; Unicode categories, which `re` lacks, are approximated."""
    for category, approximation in ((r"\p{L}", r"\w"), (r"\p{Z}", r"\s"), (r"\p{N}", r"\d")):
        java = java.replace(category, approximation)
    return re.compile(java)


def _join(path: str, name: str) -> str:
    camel = name[0].lower() + name[1:]
    return f"{path}.{camel}" if path else camel


def _violation(value: Any, path: str, rule: str) -> str:
    shown = "" if value is None or isinstance(value, bytes) else f" '{str(value)[:_SHOWN]}'"
    return f"Value{shown} at '{path}' failed to satisfy constraint: {rule}"


def _wrong_type(path: str) -> ApiError:
    where = f" at '{path}'" if path else ""
    return ApiError("SerializationException", f"The value{where} can not be converted to its type.")


def _write(value: Any, shape: Any) -> Any:
    if shape.type_name == "structure":
        return {name: _write(v, shape.members[name]) for name, v in value.items()}
    if shape.type_name == "list":
        return [_write(v, shape.member) for v in value]
    if shape.type_name == "map":
        return {k: _write(v, shape.value) for k, v in value.items()}
    if shape.type_name == "float":
        return float32(value)
    if shape.type_name == "timestamp":
        return round(value.timestamp(), 3)
    if shape.type_name == "blob":
        return base64.b64encode(value).decode()
    return value
