"""What making an image fit costs, and how late the turns of the calls come while images are being changed.

    python benchmarks/fitting.py [--seconds 5]

The pictures are made here: smooth noise with a grain, which compresses about as a photograph does. The second part
runs an event loop that wants to wake every 10 ms, as a pacer of 100 calls a second does, first by itself and then
beside as many threads that fit pictures as a run has. It claims nothing about memory, or about a model's answers for
shrunk images.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import time
from functools import partial

import anyio
import anyio.to_thread
from common import conditions
from PIL import Image, ImageChops

from batchcl.imaging.fit import FittedImage, fit

CASES = {
    "JPEG of 24 megapixels": ((6000, 4000), "JPEG", {"quality": 92}),
    "JPEG of 12 megapixels over 4 MB": ((4000, 3000), "JPEG", {"quality": 99, "subsampling": 0}),
    "WebP of 12 megapixels": ((4000, 3000), "WEBP", {"quality": 80}),
    "PNG of 12 megapixels": ((4000, 3000), "PNG", {"compress_level": 1}),
    "TIFF of 12 megapixels": ((4000, 3000), "TIFF", {}),
    "BMP of 0.3 megapixels": ((640, 480), "BMP", {}),
}
TICK_S = 0.01
LEAST_TIMES = 3


def photograph(size: tuple[int, int]) -> Image.Image:
    """Shapes of all sizes and some grain, in colour."""
    bands = []
    for _ in range(3):
        band = Image.effect_noise((size[0] // 64, size[1] // 64), 160).resize(size, Image.Resampling.BICUBIC)
        bands.append(ImageChops.add(band, Image.effect_noise(size, 8), scale=2))
    return Image.merge("RGB", bands)


def encoded(size: tuple[int, int], kind: str, options: dict[str, int]) -> bytes:
    sink = io.BytesIO()
    photograph(size).save(sink, kind, **options)
    return sink.getvalue()


def cost(data: bytes, seconds: float) -> dict[str, object]:
    """CPU seconds of one `fit`, repeated for so long and at least three times."""
    taken: list[float] = []
    fitted: FittedImage | None = None
    until = time.monotonic() + seconds
    while len(taken) < LEAST_TIMES or time.monotonic() < until:
        began = time.process_time()
        fitted = fit(data)
        taken.append(time.process_time() - began)
    assert fitted is not None
    return {
        "cpu_s": round(statistics.median(taken), 3),
        "spread_s": [round(min(taken), 3), round(max(taken), 3)],
        "times": len(taken),
        "bytes": [len(data), len(fitted.data)],
        "note": fitted.note,
    }


async def lateness(pictures: list[bytes], *, threads: int, seconds: float) -> dict[str, float | int]:
    """How late, in milliseconds, a task wakes that wants to each 10 ms."""
    late: list[float] = []
    changed = 0

    async def change() -> None:
        nonlocal changed
        while True:
            for data in pictures:
                await anyio.to_thread.run_sync(fit, data, abandon_on_cancel=True)
                changed += 1

    async with anyio.create_task_group() as group:
        for _ in range(threads):
            group.start_soon(change)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began = time.monotonic()
            await anyio.sleep(TICK_S)
            late.append((time.monotonic() - began - TICK_S) * 1000)
        group.cancel_scope.cancel()
    late.sort()
    return {
        "threads": threads,
        "images_per_second": round(changed / seconds, 2),
        "late_ms_median": round(statistics.median(late), 2),
        "late_ms_p99": round(late[int(len(late) * 0.99)], 2),
        "late_ms_most": round(late[-1], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each figure")
    seconds: float = parser.parse_args().seconds
    print(json.dumps(conditions("pillow")))
    pictures = {name: encoded(*case) for name, case in CASES.items()}
    for name, data in pictures.items():
        print(json.dumps({"image": name} | cost(data, seconds)))
    threads = max(1, (os.cpu_count() or 1) - 1)
    for count in (0, threads):
        print(json.dumps(anyio.run(partial(lateness, list(pictures.values()), threads=count, seconds=2 * seconds))))


if __name__ == "__main__":
    main()
