"""The call: one image in, its labels or a classified error out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol

from batchcl.aws.arn import ModelArn
from batchcl.aws.detect_sdk import RenewingDetector
from batchcl.aws.detect_wire import WireDetector
from batchcl.aws.session import Aws
from batchcl.aws.transport import Transport
from batchcl.aws.wire import open_wire
from batchcl.images import ImageRef
from batchcl.reading.base import ImageReader
from batchcl.scoring.outcome import Detection

__all__ = ["Detector", "open_detector"]


class Detector(Protocol):
    """Scores one image. Safe for many concurrent callers."""

    async def detect(self, image: ImageRef) -> Detection:
        """The labels of `image`; raises a `CallError` subclass that says what to do."""
        ...


@asynccontextmanager
async def open_detector(
    aws: Aws,
    model: ModelArn,
    *,
    transport: Transport = Transport.WIRE,
    min_confidence: float | None = None,
    max_results: int | None = None,
    connections: int = 256,
    reader: ImageReader | None = None,
) -> AsyncIterator[Detector]:
    """A detector for `model`; its connections are closed at the end of the block.

    `reader` reads the images that travel as bytes: without one, local files. Credentials that expire are looked up
    anew once per expiry, whatever the transport; a second refusal is fatal.

    Raises:
        RefusedError: there are no credentials, no endpoint, or no readable CA bundle.
    """
    if transport is Transport.WIRE:
        async with open_wire(aws, "rekognition", region=model.region, connections=connections) as wire:
            yield WireDetector(wire, model, min_confidence=min_confidence, max_results=max_results, reader=reader)
        return
    async with AsyncExitStack() as stack:
        detector = RenewingDetector(
            stack,
            aws,
            model,
            connections=connections,
            min_confidence=min_confidence,
            max_results=max_results,
            reader=reader,
        )
        await detector.open()
        yield detector
