"""How one emulator is set up."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from batchcl.errors import UsageError

__all__ = ["ACCOUNT", "EmulatorSettings"]

ACCOUNT: Final = "123456789012"
"""The account of the built-in credentials `emulator` / `emulator`."""

_DURATIONS: Final = tuple(f"{what}_seconds" for what in ("start", "stop", "train", "copy", "dataset", "delete"))


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatorSettings:
    """Everything that `batchcl emulator` can be told; each field is the flag of the same name.

    Attributes:
        host: a loopback address to listen on; any other one is refused.
        port: 0 lets the system choose.
        state: folder that keeps projects, datasets and models; None keeps them until the emulator ends.
        buckets: folder whose sub-folders are the buckets. Excludes `s3_endpoint_url`.
        bucket_regions: `BUCKET=REGION` for buckets that the service must not read from another region. Others lie
            where S3 says, and in a folder in every region.
        s3_endpoint_url: an S3 service to read objects from, with the ordinary AWS credentials chain.
        tps_per_unit: DetectCustomLabels calls a second of one inference unit. AWS doesn't publish it; 2.8 is
            what the pricing page's example implies.
        account_tps: DetectCustomLabels calls a second of one account and region (AWS general reference: 50).
        control_tps: calls a second of each other operation (AWS general reference: 5).
        start_seconds: how long a version stays STARTING.
        stop_seconds: how long a version stays STOPPING.
        train_seconds: the least time that a version stays TRAINING_IN_PROGRESS.
        copy_seconds: how long a version stays COPYING_IN_PROGRESS.
        dataset_seconds: how long a dataset is being created, updated or distributed.
        delete_seconds: how long a project, dataset or version is being deleted.
        scale_seconds: how long the load on a model is watched before it gets an inference unit more or less.
        latency_ms: the median of what is added to each DetectCustomLabels call that is let through.
        latency_p99_ms: what 99 of 100 of these stay under; 0 for always the median.
        cached_inference: look at an image's bytes once, and answer the same for the same bytes: for load tests.
        faults: a file of faults; see `batchcl.emulator.fault_injection`.
        seed: of everything that training draws.
        exit_with_parent: end when the process that started the emulator ends.

    Raises:
        UsageError: a value is out of its range, or two of them exclude each other.
    """

    host: str = "127.0.0.1"
    port: int = 0
    state: Path | None = None
    buckets: Path | None = None
    bucket_regions: tuple[str, ...] = ()
    s3_endpoint_url: str | None = None
    tps_per_unit: float = 2.8
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
        if not _loopback(self.host):
            raise UsageError(
                f"the emulator listens on a loopback address only, and {self.host!r} is not one; "
                "leave --host out for 127.0.0.1"
            )
        if self.buckets is not None and self.s3_endpoint_url is not None:
            raise UsageError("give the emulator either --buckets or --s3-endpoint-url, not both")
        for pair in self.bucket_regions:
            if not all(pair.partition("=")):
                raise UsageError(f"--bucket-region {pair!r} is not BUCKET=REGION, such as photos=eu-west-1")
        for name in ("tps_per_unit", "account_tps", "control_tps", "scale_seconds"):
            if not getattr(self, name) > 0:
                raise UsageError(f"--{name.replace('_', '-')} must be more than 0")
        for name in (*_DURATIONS, "latency_ms", "latency_p99_ms", "seed", "port"):
            if getattr(self, name) < 0:
                raise UsageError(f"--{name.replace('_', '-')} can't be less than 0")

    def regions(self) -> dict[str, str]:
        """`bucket_regions` by bucket."""
        return dict(pair.split("=", 1) for pair in self.bucket_regions)

    def arguments(self) -> list[str]:
        """The flags of `batchcl emulator` that say the same."""
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


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
