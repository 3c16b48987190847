"""Every error that batchcl raises, in one tree.

```
BatchclError
├── UsageError              exit 2: the job, a flag or a source is wrong
│   └── SourceError         a list of images can't be read
├── RefusedError            exit 5: nothing was spent, and nothing can be done as things stand
│   ├── CredentialsError    AWS doesn't know or doesn't let us
│   ├── RegionError         a bucket lies in another region than the model
│   ├── ModelError          the model is unknown, not trained, or not running
│   ├── OutputError         the output root can't be written
│   │   └── OutputCredentialsError  for lack of credentials; a CredentialsError too
│   └── UnreachableError    a service doesn't answer
├── StoppedError            exit 4: stopped early with everything so far kept
│   ├── InterruptedRunError exit 130: ^C
│   ├── TooManyFailuresError exit 3: more images failed than tolerated
│   ├── StalledError        no image got an outcome for 15 minutes
│   └── ModelGoneError      the model stopped running in the middle
└── CallError               what one DetectCustomLabels call came back with
    ├── ThrottledError      over capacity: the image goes back to the front
    ├── TransientError      worth another attempt
    │   ├── CredentialsFailingError  nothing can be signed just now, for whatever image
    │   └── HostError       the same, but not from the service: a disk or S3 does not return an image
    │       └── ShortageError  this machine has no descriptor or memory to spare: wait, with fewer calls at a time
    ├── ImageError          this image fails, the others go on
    │   └── RejectedError   so it does, unless 20 calls in a row are rejected: then the run stops
    ├── ModelNotReadyError  no calls until the model is back
    └── FatalCallError      no call can succeed: the run stops
```

A message names what was being done, to what, why it failed and what to do next. No message holds a secret.


Commands in messages, to be pasted into a shell.
"""

from __future__ import annotations

import shlex
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchcl.summary import Summary

__all__ = [
    "BatchclError",
    "CallError",
    "CredentialsError",
    "CredentialsFailingError",
    "ExitCode",
    "FatalCallError",
    "HostError",
    "ImageError",
    "InterruptedRunError",
    "ModelError",
    "ModelGoneError",
    "ModelNotReadyError",
    "OutputCredentialsError",
    "OutputError",
    "RefusedError",
    "RegionError",
    "RejectedError",
    "ShortageError",
    "SourceError",
    "StalledError",
    "StoppedError",
    "ThrottledError",
    "TooManyFailuresError",
    "TransientError",
    "UnreachableError",
    "UsageError",
    "command",
]


class ExitCode(IntEnum):
    """What the process says to cron and Airflow when it ends."""

    DONE = 0
    """Everything is done, failures within tolerance."""
    BUG = 1
    """An error that batchcl did not foresee."""
    USAGE = 2
    """The job file, a flag or a source is wrong."""
    FAILURES = 3
    """Everything is done, but more images failed than tolerated."""
    STOPPED = 4
    """Stopped early; what is done is kept."""
    REFUSED = 5
    """Refused before a call was spent."""
    INTERRUPTED = 130
    """^C, after the drain."""


class BatchclError(Exception):
    """Any error that batchcl raises on purpose.

    Attributes:
        exit_code: what the command line ends with.
        summary: how far the run came, where one had begun.
    """

    exit_code: ExitCode = ExitCode.BUG
    summary: Summary | None = None


class UsageError(BatchclError):
    """The job, a flag or a source is wrong; running it again unchanged fails again."""

    exit_code = ExitCode.USAGE


class SourceError(UsageError):
    """A list of images is missing, empty, or holds something that can't be read."""


class RefusedError(BatchclError):
    """The run was refused before a call was spent."""

    exit_code = ExitCode.REFUSED


class CredentialsError(RefusedError):
    """There are no credentials, or AWS refuses them.

    Attributes:
        is_access_denied: AWS knows them, but doesn't let them do this.
        may_pass: they were valid before, and have failed for less than five minutes.
        exit_code: that of a stop where they were valid before, and have failed for longer (`has_lasted`).
    """

    def __init__(
        self, message: str, *, is_access_denied: bool = False, may_pass: bool = False, has_lasted: bool = False
    ) -> None:
        super().__init__(message)
        self.is_access_denied = is_access_denied
        self.may_pass = may_pass
        if has_lasted:
            self.exit_code = ExitCode.STOPPED


class RegionError(RefusedError):
    """A bucket lies in another region than the model, in `found` if S3 says so; the service can't read it there."""

    def __init__(self, message: str, *, found: str | None = None) -> None:
        super().__init__(message)
        self.found = found


class ModelError(RefusedError):
    """The model is unknown, not trained, or not running."""


class OutputError(RefusedError):
    """The output root can't be written or read."""


class OutputCredentialsError(CredentialsError, OutputError):
    """The output root can't be written or read for lack of credentials."""


class UnreachableError(RefusedError):
    """A service doesn't answer, or is too busy to: it may the next time."""


class StoppedError(BatchclError):
    """The run ended before its work list did; what is done is kept."""

    exit_code = ExitCode.STOPPED


class InterruptedRunError(StoppedError):
    """The user pressed ^C."""

    exit_code = ExitCode.INTERRUPTED


class TooManyFailuresError(StoppedError):
    """More images failed than `max_failures` tolerates."""

    exit_code = ExitCode.FAILURES


class StalledError(StoppedError):
    """Calls were due and the model was running, but no image got an outcome for 15 minutes."""


class ModelGoneError(StoppedError):
    """The model stopped running in the middle of the run."""


class CallError(BatchclError):
    """One call came back with an error. `code` is the service's own word, or ours where it said none.

    `status` is the HTTP status, or None where no answer came.
    """

    def __init__(self, message: str, *, code: str, status: int | None = None, request_id: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.request_id = request_id


class ThrottledError(CallError):
    """The service said "over capacity".

    Attributes:
        sudden: it asked for a slower ramp rather than a lower rate.
        downloads: S3's limit on what the service downloads is at fault, not the model's capacity.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int | None = None,
        request_id: str = "",
        sudden: bool = False,
        downloads: bool = False,
    ) -> None:
        super().__init__(message, code=code, status=status, request_id=request_id)
        self.sudden = sudden
        self.downloads = downloads


class TransientError(CallError):
    """The next attempt may well succeed."""


class CredentialsFailingError(TransientError):
    """Credentials that were valid fail, for less than five minutes: no call can be signed just now."""


class HostError(TransientError):
    """A disk or S3 doesn't give an image just now; the service was not asked."""


class ShortageError(HostError):
    """This machine has no file descriptor or memory to spare; with fewer calls at a time it will have."""


class ImageError(CallError):
    """The service refuses this image, whatever the attempt."""


class RejectedError(ImageError):
    """The service rejects the call without a verdict on the picture: the reason may concern other images, too.

    `is_general` where it usually concerns all of them, as a permission, the model or the identity does.
    """

    def __init__(
        self, message: str, *, code: str, status: int | None = None, request_id: str = "", is_general: bool = False
    ) -> None:
        super().__init__(message, code=code, status=status, request_id=request_id)
        self.is_general = is_general


class ModelNotReadyError(CallError):
    """The model isn't RUNNING just now."""


class FatalCallError(CallError):
    """No call of this run can succeed until somebody changes something."""


def command(*words: str) -> str:
    """`batchcl` with these arguments, quoted where a shell needs it, between backticks."""
    return f"`{shlex.join(('batchcl', *words))}`"
