"""What sending bytes and making an image fit cost, with photographs of 12 megapixels, and on how many cores it runs.

    python benchmarks/fitting.py [--seconds 5]

The pictures are made here: smooth noise with a grain, which compresses about as a photograph does. Four parts:

- `image`: CPU time of one `fit`, for each kind of picture.
- `sent_from`: CPU time of a call with a picture's bytes, from reading it to the response of a stub; from a file, and
  from an S3 server on this machine, as for images of another region.
- `cores`: how many images `fit` changes on one core and on all of them, and how many cores that keeps busy. On a busy
  machine, compare `images_per_cpu_second` only.
- `threads`: how late an event loop wakes that wants to each 10 ms, as a pacer of 100 calls a second does, by itself
  and beside as many threads that fit pictures as a run has.

It claims nothing about memory, the network, TLS, or a model's answers for shrunk images.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
from common import MODEL, conditions, cores, environment, said_by, stub
from PIL import Image, ImageChops

from batchcl.arns import ModelArn
from batchcl.aws.detect import open_detector
from batchcl.aws.session import Aws
from batchcl.cores import usable_cores
from batchcl.images import ImageRef
from batchcl.imaging.fit import FittedImage, fit
from batchcl.loaders.open import open_reader

CASES = {
    "JPEG of 24 megapixels": ((6000, 4000), "JPEG", {"quality": 92}),
    "JPEG of 12 megapixels over 4 MB": ((4000, 3000), "JPEG", {"quality": 97}),
    "JPEG of 12 megapixels over 15 MB": ((4000, 3000), "JPEG", {"quality": 99, "subsampling": 0}),
    "WebP of 12 megapixels": ((4000, 3000), "WEBP", {"quality": 80}),
    "PNG of 12 megapixels": ((4000, 3000), "PNG", {"compress_level": 1}),
    "TIFF of 12 megapixels": ((4000, 3000), "TIFF", {}),
    "TIFF of 2 megapixels": ((1600, 1200), "TIFF", {}),
    "BMP of 0.3 megapixels": ((640, 480), "BMP", {}),
}
SENT = ((4000, 3000), "JPEG", {"quality": 92})
"""A photograph that the service accepts as it is."""

CHANGED = "JPEG of 12 megapixels over 4 MB"
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


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """A server of the files in `folder`, which are buckets with objects."""
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "0", "--directory", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().split(' port ')[1].split()[0]}"
        process.terminate()


async def sending(images: dict[str, ImageRef], *, size: int, seconds: float) -> None:
    """Print the CPU time of a call with the bytes of each image."""
    aws = Aws()
    async with (
        open_reader(aws, region="us-east-1", connections=8) as reader,
        open_detector(aws, ModelArn.parse(MODEL), reader=reader) as detector,
    ):
        for name, image in images.items():
            await detector.detect(image)  # opens the connections
            taken: list[float] = []
            until = time.monotonic() + seconds
            while len(taken) < LEAST_TIMES or time.monotonic() < until:
                began = time.process_time()
                await detector.detect(image)
                taken.append(time.process_time() - began)
            cpu_ms = round(1000 * statistics.median(taken), 1)
            print(json.dumps({"sent_from": name, "bytes": size, "cpu_ms": cpu_ms, "times": len(taken)}))


def send(data: bytes, *, seconds: float) -> None:
    """The second part, with servers on the last core."""
    _, server = cores()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "photos", "a.jpg")
        path.parent.mkdir()
        path.write_bytes(data)
        with stub(core=server) as endpoint, s3_server(Path(folder)) as s3:
            os.environ.update(environment(endpoint) | {"AWS_ENDPOINT_URL_S3": s3})
            local = ImageRef(uri=str(path), bucket="", key=str(path), size_bytes=len(data))
            remote = ImageRef(
                uri="s3://photos/a.jpg", bucket="photos", key="a.jpg", size_bytes=len(data), region="eu-west-1"
            )
            anyio.run(partial(sending, {"file": local, "S3": remote}, size=len(data), seconds=seconds))


async def work(data: bytes, *, threads: int, seconds: float) -> dict[str, float | int]:
    """The number of images that the threads change."""
    changed = 0

    async def change() -> None:
        nonlocal changed
        while time.monotonic() < until:
            await anyio.to_thread.run_sync(fit, data)
            changed += 1

    cpu_s, began = time.process_time(), time.monotonic()
    until = began + seconds
    async with anyio.create_task_group() as group:
        for _ in range(threads):
            group.start_soon(change)
    cpu_s, wall_s = time.process_time() - cpu_s, time.monotonic() - began
    return {
        "cores": threads,
        "images_per_cpu_second": round(changed / cpu_s, 2),
        "images_per_second": round(changed / wall_s, 2),
        "cores_busy": round(cpu_s / wall_s, 2),
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
    parser.add_argument("--work-on", metavar="FILE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    seconds: float = arguments.seconds
    if arguments.work_on:
        data = Path(arguments.work_on).read_bytes()
        print(json.dumps(anyio.run(partial(work, data, threads=usable_cores(), seconds=seconds))))
        return
    print(json.dumps(conditions("pillow", "aiohttp", "aioboto3")))
    pictures = {name: encoded(*case) for name, case in CASES.items()}
    for name, data in pictures.items():
        print(json.dumps({"image": name} | cost(data, seconds)))
    send(encoded(*SENT), seconds=seconds)
    allowed = sorted(os.sched_getaffinity(0))
    with tempfile.NamedTemporaryFile() as file:
        file.write(pictures[CHANGED])
        file.flush()
        for count in sorted({1, len(allowed)}):
            os.sched_setaffinity(0, set(allowed[:count]))
            print(json.dumps(said_by([__file__, "--seconds", 2 * seconds, "--work-on", file.name])))
    threads = usable_cores()
    for count in (0, threads):
        print(json.dumps(anyio.run(partial(lateness, list(pictures.values()), threads=count, seconds=2 * seconds))))


if __name__ == "__main__":
    main()
