"""`batchcl detect`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from batchcl.cli.detect_annotate import Drawing
from batchcl.cli.detect_output import Form, Query, show
from batchcl.cli.options import MaxResults, MinConfidence, Profile, Region
from batchcl.cli.streams import write_line
from batchcl.errors import ErrorCode, ExitCode, UsageError
from batchcl.quantities import confidence_hint

if TYPE_CHECKING:
    from batchcl.cli.detect_request import DetectRequest
    from batchcl.scoring.detect import DetectResult, ImageInput

__all__ = ["detect"]

_BOX: Final = ("left", "top", "width", "height")
_ATTEMPTS: Final = 3
"""Few, because a person waits for the response."""

_FIT_HELPS: Final = frozenset({"ImageTooLargeException", "InvalidImageFormatException"})

Images = Annotated[
    list[str] | None,
    typer.Argument(metavar="IMAGE...", help="Files, s3://bucket/key, or - for one image on stdin.", show_default=False),
]
Model = Annotated[
    str | None, typer.Option("--model", metavar="MODEL", help="PROJECT@VERSION, PROJECT or an ARN.", show_default=False)
]
VersionId = Annotated[
    str | None,
    typer.Option("--version-id", metavar="ID", help="Object version; for one image in S3.", show_default=False),
]
Fit = Annotated[
    bool, typer.Option("--fit", help="Shrink or convert images that the service would refuse; boxes remain valid.")
]
Annotate = Annotated[
    Path | None,
    typer.Option(
        "--annotate",
        metavar="OUT",
        help="Draw boxes and labels to OUT.png or OUT.jpg, or to a directory for several images.",
        show_default=False,
    ),
]
Output = Annotated[Form | None, typer.Option("--output", help="Output format (default: table).", show_default=False)]
QueryOption = Annotated[
    str | None,
    typer.Option(
        "--query", metavar="JMESPATH", help="JMESPath query on the response; prints JSON.", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Same as --output json.")]
InputJson = Annotated[
    str | None,
    typer.Option(
        "--input-json",
        metavar="JSON",
        help="Request as JSON, its file, or - for stdin; flags override it.",
        show_default=False,
    ),
]
Skeleton = Annotated[bool, typer.Option("--skeleton", help="Print an empty --input-json and exit.")]
EndpointUrl = Annotated[
    str | None,
    typer.Option(
        "--endpoint-url",
        metavar="URL",
        help="Rekognition endpoint (default: the one of the region).",
        show_default=False,
    ),
]
NoVerifySsl = Annotated[bool, typer.Option("--no-verify-ssl", help="Do not verify certificates.")]
CaBundle = Annotated[
    str | None,
    typer.Option("--ca-bundle", metavar="FILE", help="File of certificates to trust.", show_default=False),
]
NoSignRequest = Annotated[bool, typer.Option("--no-sign-request", help="Do not sign the request.")]
ReadTimeout = Annotated[
    float, typer.Option("--read-timeout", metavar="S", min=0, help="Timeout of the response in seconds; 0: none.")
]
ConnectTimeout = Annotated[
    float, typer.Option("--connect-timeout", metavar="S", min=0, help="Timeout of the connection in seconds; 0: none.")
]


def detect(
    images: Images = None,
    *,
    model: Model = None,
    min_confidence: MinConfidence = None,
    max_results: MaxResults = None,
    version_id: VersionId = None,
    fit: Fit = False,
    annotate: Annotate = None,
    output: Output = None,
    query: QueryOption = None,
    json: Json = False,
    input_json: InputJson = None,
    skeleton: Skeleton = False,
    profile: Profile = None,
    region: Region = None,
    endpoint_url: EndpointUrl = None,
    no_verify_ssl: NoVerifySsl = False,
    ca_bundle: CaBundle = None,
    no_sign_request: NoSignRequest = False,
    read_timeout: ReadTimeout = 60,
    connect_timeout: ConnectTimeout = 60,
) -> None:
    """Score one or a few images with a running model, and show the response.

    For one image, JSON, YAML and text equal those of `aws rekognition detect-custom-labels`; for several they are in
    one list, Images. Files and stdin are sent as bytes, up to 4 MB.

    Examples:

      batchcl detect photo.jpg --model cats@v2

      batchcl detect s3://photos/a.jpg --model ARN --min-confidence 50 --annotate boxes.png

      batchcl detect *.webp --model cats@v2 --fit --query 'Images[].CustomLabels[0].Name' --output text

      curl -s URL | batchcl detect - --model cats@v2 --json
    """
    if ca_bundle is not None and not Path(ca_bundle).exists():
        raise UsageError(f"--ca-bundle {ca_bundle}: file not found; check the path")
    form = _form(output, json=json, has_query=query is not None)
    wanted = None if query is None else Query(query)
    if skeleton:
        from batchcl.cli.detect_request import skeleton as empty

        show(empty(), Form.JSON if output is None else output)
        return
    selected = _select(images or [], input_json, version_id)
    request = selected.request
    named = model or (request.model if request else None)
    if not named:
        raise UsageError("--model is missing: name a model, PROJECT@VERSION or ARN; `batchcl model list` shows yours")
    if (question := confidence_hint(min_confidence)) is not None:
        write_line(question)
    drawing = None if annotate is None else Drawing(annotate, selected.images)
    found = _detected(
        selected.images,
        model=named,
        min_confidence=min_confidence if min_confidence is not None or not request else request.min_confidence,
        max_results=max_results if max_results is not None or not request else request.max_results,
        fit=fit,
        on_read=None if drawing is None else drawing.keep,
        settings={"profile": profile, "region": region, "rekognition_endpoint_url": endpoint_url},
        connection={
            "is_verified": not no_verify_ssl,
            "ca_bundle": ca_bundle,
            "is_signed": not no_sign_request,
            "connect_timeout_s": connect_timeout or None,
            "read_timeout_s": read_timeout or None,
            "max_attempts": _ATTEMPTS,
        },
    )
    failed = _report(found, fit=fit)
    _show(found, form, wanted)
    if drawing is not None:
        drawing.draw(found)
    if failed:
        raise typer.Exit(ExitCode.FAILURES)


def _form(output: Form | None, *, json: bool, has_query: bool) -> Form:
    if json and output not in (None, Form.JSON):
        raise UsageError(
            f"--json and --output {output} exclude each other; choose one", code=ErrorCode.CONFLICTING_OPTIONS
        )
    if output is not None:
        return output
    return Form.JSON if json or has_query else Form.TABLE


@dataclass(frozen=True, slots=True)
class _Selected:
    """The images, and the request that came with them."""

    images: list[ImageInput]
    request: DetectRequest | None


def _select(images: Sequence[str], input_json: str | None, version_id: str | None) -> _Selected:
    """The images on the command line, or else the one in the request."""
    from batchcl.cli.detect_request import read_request
    from batchcl.scoring.detect import image_input

    if input_json == "-" and "-" in images:
        raise UsageError(
            "stdin is both an image and --input-json; use a file for one of them", code=ErrorCode.CONFLICTING_OPTIONS
        )
    if images.count("-") > 1:
        raise UsageError("- is given more than once; stdin can be one image only")
    if version_id is not None and len(images) > 1:
        raise UsageError("--version-id needs exactly one image", code=ErrorCode.CONFLICTING_OPTIONS)
    request = None if input_json is None else read_request(input_json)
    found = [_stdin() if each == "-" else image_input(each, version_id=version_id) for each in images]
    if not found and request is not None and (requested := request.given()) is not None:
        found = [_versioned(requested, version_id)]
    if not found:
        raise UsageError("IMAGE is missing: name a file, s3://bucket/key, or - for stdin")
    return _Selected(found, request)


def _versioned(each: ImageInput, version_id: str | None) -> ImageInput:
    """The image of the request in the version of the command line."""
    if version_id is None:
        return each
    if each.image is None:
        raise UsageError(
            "--version-id needs an image in S3, but the request's image is bytes; omit it",
            code=ErrorCode.CONFLICTING_OPTIONS,
        )
    return replace(each, image=replace(each.image, version_id=version_id))


def _stdin() -> ImageInput:
    from batchcl.images import MAX_BYTES_FITTABLE
    from batchcl.scoring.detect import ImageInput

    data = sys.stdin.buffer.read(MAX_BYTES_FITTABLE + 1)
    if not data:
        raise UsageError("stdin is empty; expected an image")
    if len(data) > MAX_BYTES_FITTABLE:
        raise UsageError(f"stdin has more than {MAX_BYTES_FITTABLE:,} bytes, the limit of an image; shrink it")
    return ImageInput(name="-", data=data)


def _detected(
    images: list[ImageInput], *, settings: dict[str, Any], connection: dict[str, Any], **asked: Any
) -> list[DetectResult]:
    import anyio

    from batchcl.aws.session import Aws, AwsSettings, Connection
    from batchcl.cli.signals import run_until_first_signal
    from batchcl.scoring.detect import detect as looked_at

    aws = Aws(AwsSettings(**settings, connection=Connection(**connection)))
    return anyio.run(run_until_first_signal, partial(looked_at, images, aws=aws, **asked))


def _report(found: Sequence[DetectResult], *, fit: bool) -> bool:
    """Print what was changed and what failed. Returns whether anything failed."""
    for each in found:
        if each.fitted is not None:
            write_line(f"{each.name} was changed before sending: {each.fitted}")
        if each.error is not None:
            may_help = not fit and each.error.code in _FIT_HELPS
            write_line(f"{each.name}: {each.error.code}: {each.error}{'; --fit may fix this' if may_help else ''}")
    return any(each.error is not None for each in found)


def _show(found: Sequence[DetectResult], form: Form, query: Query | None) -> None:
    """Write one response unchanged, or several as a list."""
    if len(found) == 1 and found[0].answer is None:
        return
    if form is Form.TABLE and query is None:
        _show_labels(found)
        return
    answer = found[0].answer if len(found) == 1 else {"Images": [_entry(each) for each in found]}
    show(answer if query is None else query.of(answer), form)


def _entry(each: DetectResult) -> dict[str, Any]:
    changed = {} if each.fitted is None else {"Fitted": each.fitted}
    if each.error is not None:
        return {"Image": each.name, **changed, "Error": {"Code": each.error.code, "Message": str(each.error)}}
    assert each.answer is not None
    return {"Image": each.name, **changed, **each.answer}


def _show_labels(found: Sequence[DetectResult]) -> None:
    """One row per label; the columns of boxes only if there are boxes."""
    rows = [
        ({"image": each.name} if len(found) > 1 else {})
        | {"label": label.name, "confidence": label.confidence}
        | dict(zip(_BOX, label.box or (None,) * 4, strict=True))
        for each in found
        for label in each.labels
    ]
    if not any(row[_BOX[0]] is not None for row in rows):
        rows = [{name: value for name, value in row.items() if name not in _BOX} for row in rows]
    if rows:
        show(rows, Form.TABLE)
    elif any(each.answer is not None for each in found):
        write_line("no labels; use --min-confidence 0 to return all")
