"""Settings of an emulator."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from batchcl.errors import ErrorCode, UsageError

__all__ = ["ACCOUNT", "EmulatorSettings"]

ACCOUNT: Final = "123456789012"
"""The account of the built-in credentials `emulator` / `emulator`."""

_DURATIONS: Final = tuple(f"{action}_seconds" for action in ("start", "stop", "train", "copy", "dataset", "delete"))


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatorSettings:
    """Settings of an emulator; each field is the flag of `batchcl emulator` with the same name.

    Attributes:
        host: loopback address to listen on.
        port: 0 for a free one.
        state: folder for projects, datasets and models; None for a temporary one, which is deleted at the end.
        buckets: folder whose sub-folders are the buckets. Excludes `s3_endpoint_url`.
        bucket_regions: `BUCKET=REGION` for buckets that can only be read from one region. The region of others is
            that reported by S3; folders can be read from all regions.
        s3_endpoint_url: S3 service to read objects from, with the AWS credentials of the emulator's process.
        tps_per_unit: DetectCustomLabels calls per second and inference unit. AWS doesn't publish it; 2.8 follows from
            the example on its pricing page.
        seconds_per_megapixel: seconds of one inference unit per million pixels of an image, in addition to the
            `1 / tps_per_unit` of each image. AWS says that the resolution matters, but not how much.
        account_tps: DetectCustomLabels calls per second, account and region (AWS general reference: 50).
        control_tps: calls per second of each other operation (AWS general reference: 5).
        start_seconds: how long a version is STARTING.
        stop_seconds: how long a version is STOPPING.
        train_seconds: minimum time that a version is TRAINING_IN_PROGRESS.
        copy_seconds: how long a version is COPYING_IN_PROGRESS.
        dataset_seconds: how long a dataset is being created, updated or distributed.
        delete_seconds: how long a project, dataset or version is being deleted.
        scale_seconds: period whose load decides whether a model gets an inference unit more or less.
        latency_ms: median latency added to each DetectCustomLabels call that is admitted.
        latency_p99_ms: 99th percentile of that latency; 0 for always the median.
        cached_inference: compute the result for the same bytes only once, for load tests.
        faults: file of faults; see `batchcl.emulator.fault_injection`.
        seed: of all random numbers in training.
        exit_with_parent: end when the parent process ends.

    Raises:
        UsageError: a value is out of range, or two exclude each other.
    """

    host: str = "127.0.0.1"
    port: int = 0
    state: Path | None = None
    buckets: Path | None = None
    bucket_regions: tuple[str, ...] = ()
    s3_endpoint_url: str | None = None
    tps_per_unit: float = 2.8
    seconds_per_megapixel: float = 0.0
    account_tps: float = 50.0
    control_tps: float = 5.0
    start_seconds: float = 0.5
    stop_seconds: float = 0.2
    train_seconds: float = 0.5
    copy_seconds: float = 0.2
    dataset_seconds: float = 0.1
    delete_seconds: float = 0.2
    scale_seconds: float = 60.0
    latency_ms: float = 0.0
    latency_p99_ms: float = 0.0
    cached_inference: bool = False
    faults: Path | None = None
    seed: int = 0
    exit_with_parent: bool = False

    def __post_init__(self) -> None:
        if not _is_loopback(self.host):
            raise UsageError(
                f"--host {self.host!r} is not a loopback address, and the emulator listens on no other. Omit "
                "--host for 127.0.0.1."
            )
        if self.buckets is not None and self.s3_endpoint_url is not None:
            raise UsageError(
                "--buckets and --s3-endpoint-url exclude each other. Pass one of them.",
                code=ErrorCode.CONFLICTING_OPTIONS,
            )
        for pair in self.bucket_regions:
            if not all(pair.partition("=")):
                raise UsageError(f"--bucket-region {pair!r} is not BUCKET=REGION, such as photos=eu-west-1.")
        for name in ("tps_per_unit", "account_tps", "control_tps", "scale_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"--{name.replace('_', '-')} must be a number greater than 0.")
        for name in (*_DURATIONS, "seconds_per_megapixel", "latency_ms", "latency_p99_ms", "seed", "port"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"--{name.replace('_', '-')} must be a number that is not negative.")

    def regions(self) -> dict[str, str]:
        """`bucket_regions` by bucket."""
        return dict(pair.split("=", 1) for pair in self.bucket_regions)

    def arguments(self) -> list[str]:
        """The same settings as flags of `batchcl emulator`; defaults are omitted."""
        flags: list[str] = []
        default = EmulatorSettings()
        for name in self.__slots__:
            value = getattr(self, name)
            if value == getattr(default, name):
                continue
            flag = f"--{name.replace('_', '-')}"
            if isinstance(value, tuple):
                flags += [part for each in value for part in (flag.removesuffix("s"), each)]
            else:
                flags += [flag] if value is True else [flag, str(value)]
        return flags


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
