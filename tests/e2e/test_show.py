"""The output of `batchcl show` in docs/report.md, from images in a real S3 server."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from batchcl.images import ImageRef
from batchcl.outcomes import Label, Scored
from pixels import encoded
from servers import CommandResult, aws_env, client, make_bucket
from unit.analysis.conftest import NOON, Root

PAGE = Path(__file__).parents[2] / "docs" / "report.md"
BUCKET = "acme-photos"
LEFT, RIGHT = (0.05, 0.3, 0.4, 0.5), (0.55, 0.3, 0.4, 0.5)
LABELS = {
    "dog-on-bed.jpg": (Label("dog", 51.2), Label("cat", 50.9)),
    "sofa.jpg": (Label("cat", 91.0, LEFT), Label("cat", 51.5, RIGHT)),
    "cat.jpg": (Label("cat", 52.5, LEFT),),
    "deleted.jpg": (Label("dog", 88.0),),
    "sure.jpg": (Label("dog", 99.0),),
}


def test_the_documented_output_is_current(seaweed: str, tmp_path: Path, cli: Callable[..., CommandResult]) -> None:
    s3 = client("s3", seaweed)
    make_bucket(s3, BUCKET)
    (tmp_path / "out").mkdir()
    root = Root(tmp_path / "out")
    rows = []
    for name, labels in LABELS.items():
        key = f"2026/{name}"
        etag = s3.put_object(Bucket=BUCKET, Key=key, Body=encoded(Image.new("RGB", (640, 480), "gray"), "JPEG"))["ETag"]
        image = ImageRef(uri=f"s3://{BUCKET}/{key}", bucket=BUCKET, key=key, etag=etag.strip('"'))
        rows.append(Scored(image=image, labels=labels, attempts=1, latency_ms=80, request_id="r", scored_at=NOON))
    root.results(*rows)
    s3.delete_object(Bucket=BUCKET, Key="2026/deleted.jpg")
    match = re.search(r"^\$ batchcl (show out .*)\n((?:.+\n)+)```$", PAGE.read_text(), re.MULTILINE)
    assert match is not None
    done = cli(*match[1].split(), env=aws_env(s3=seaweed), cwd=tmp_path)
    assert (done.code, done.out) == (3, match[2])
    assert done.err.startswith(f"batchcl: s3://{BUCKET}/2026/deleted.jpg: S3 has no such object: ")
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {
        "index.csv",
        *re.findall(r"^\d{3}-\S+", match[2], re.MULTILINE),
    }
