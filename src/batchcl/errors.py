"""Every error that batchcl raises, in one tree.

```
BatchclError
├── UsageError              exit 2: the job, a flag or a source is wrong
│   └── SourceError         a list of images can't be read
├── RefusedError            exit 5: refused before a call was spent
│   ├── CredentialsError    no credentials, or AWS refuses them or the action
│   ├── RegionError         a bucket is in another region than the model
│   ├── ModelError          the model is unknown, not trained, or not running
│   ├── OutputError         the output root can't be read or written
│   │   └── OutputCredentialsError  for lack of credentials; also a CredentialsError
│   └── UnreachableError    a service does not respond
├── StoppedError            exit 4: stopped early, what is done is kept; or another process works on the run
│   ├── InterruptedRunError exit 130: ^C
│   ├── HeldError           another process works on the run, or on one that may score the same images
│   ├── TooManyFailuresError exit 3: more images failed than tolerated
│   ├── StalledError        no image got an outcome for 15 minutes
│   └── ModelGoneError      the model stopped during the run
└── CallError               one DetectCustomLabels call failed
    ├── ThrottledError      over capacity: the image goes back to the front of the queue
    ├── TransientError      retried
    │   ├── CredentialsFailingError  no request can be signed at present
    │   └── HostError       a disk or S3 did not return an image; the service was not called
    │       └── ShortageError  this machine is out of file descriptors or memory: wait, then fewer concurrent calls
    ├── ImageError          this image fails; the run continues
    │   └── RejectedError   likewise, but 20 rejected calls in a row stop the run
    ├── ModelNotReadyError  calls pause until the model is running again
    └── FatalCallError      no call can succeed: the run stops
```

A message names the action, its object, the reason and the next step. No message contains a secret.
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
    "HeldError",
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
    "exit_code_of",
]


class ExitCode(IntEnum):
    """Exit codes of the command line."""

    DONE = 0
    """Everything is done, failures within tolerance."""
    BUG = 1
    """An unexpected error."""
    USAGE = 2
    """The job file, a flag or a source is wrong."""
    FAILURES = 3
    """More images failed than tolerated, a `--fail-if` holds, or `--alarm` found a model without a lease."""
    STOPPED = 4
    """Stopped early; what is done is kept."""
    REFUSED = 5
    """Refused before a call was spent."""
    INTERRUPTED = 130
    """^C, after the drain."""


class BatchclError(Exception):
    """Any error that batchcl raises on purpose.

    Attributes:
        exit_code: of the command line.
        summary: of the run so far; None if none had started.
    """

    exit_code: ExitCode = ExitCode.BUG
    summary: Summary | None = None


class UsageError(BatchclError):
    """The job, a flag or a source is wrong; running it again unchanged fails again."""

    exit_code = ExitCode.USAGE


class SourceError(UsageError):
    """A list of images is missing, empty, or malformed."""


class RefusedError(BatchclError):
    """The run was refused before a call was spent."""

    exit_code = ExitCode.REFUSED


class CredentialsError(RefusedError):
    """There are no credentials, or AWS refuses them.

    Attributes:
        is_access_denied: they are valid, but lack a permission.
        may_pass: they were valid before, and have failed for less than five minutes.
        exit_code: STOPPED if they were valid before and have failed for longer (`has_lasted`), else REFUSED.
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
    """A bucket is in another region than the model, so the service can't read it; `region` is its region, if known."""

    def __init__(self, message: str, *, region: str | None = None) -> None:
        super().__init__(message)
        self.region = region


class ModelError(RefusedError):
    """The model is unknown, not trained, or not running."""


class OutputError(RefusedError):
    """The output root can't be written or read."""


class OutputCredentialsError(CredentialsError, OutputError):
    """The output root can't be written or read for lack of credentials."""


class UnreachableError(RefusedError):
    """A service does not respond, or is overloaded; a later attempt may succeed."""


class StoppedError(BatchclError):
    """The run ended before its work list did, and what is done is kept; or another process works on it."""

    exit_code = ExitCode.STOPPED


class InterruptedRunError(StoppedError):
    """The user pressed ^C."""

    exit_code = ExitCode.INTERRUPTED


class HeldError(StoppedError):
    """Another process works on the run, or on a run that may score the same images.

    `sessions` is the folder of that run's sessions, below the output root.
    """

    def __init__(self, message: str, *, sessions: str) -> None:
        super().__init__(message)
        self.sessions = sessions


class TooManyFailuresError(StoppedError):
    """More images failed than `max_failures` tolerates."""

    exit_code = ExitCode.FAILURES


class StalledError(StoppedError):
    """For 15 minutes no image got an outcome, although calls were due and the model was running."""


class ModelGoneError(StoppedError):
    """The model stopped during the run."""


class CallError(BatchclError):
    """One call failed.

    Attributes:
        code: the service's error code, or batchcl's own if there is no response.
        status: the HTTP status; None without a response.
        request_id: of the response; may be empty.
    """

    def __init__(self, message: str, *, code: str, status: int | None = None, request_id: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.request_id = request_id


class ThrottledError(CallError):
    """The service refused a call for capacity.

    Attributes:
        sudden: the rate rose too fast; it is not necessarily too high.
        downloads: the limit is that of the service's downloads from S3, not the model's capacity.
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
    """A retry may succeed."""


class CredentialsFailingError(TransientError):
    """Credentials that were valid have failed for less than five minutes; no call can be signed at present."""


class HostError(TransientError):
    """A disk or S3 did not return an image; the service was not called."""


class ShortageError(HostError):
    """This machine is out of file descriptors or memory; fewer concurrent calls need less."""


class ImageError(CallError):
    """This image fails; a retry does not help."""


class RejectedError(ImageError):
    """The service rejects a call for a reason other than the picture; it may apply to other images too.

    `is_general`: the reason usually applies to all images: a permission, the model or the identity.
    """

    def __init__(
        self, message: str, *, code: str, status: int | None = None, request_id: str = "", is_general: bool = False
    ) -> None:
        super().__init__(message, code=code, status=status, request_id=request_id)
        self.is_general = is_general


class ModelNotReadyError(CallError):
    """The model is not RUNNING."""


class FatalCallError(CallError):
    """No call of this run can succeed until the configuration changes."""


def exit_code_of(summary: Summary | None, error: BaseException | None) -> ExitCode:
    """The exit code of a run that ended with `summary` or `error`; a group with a bug among its errors is a bug."""
    if isinstance(error, BaseExceptionGroup):
        codes = [exit_code_of(None, part) for part in error.exceptions]
        return ExitCode.BUG if ExitCode.BUG in codes else codes[0]
    if error is not None:
        return error.exit_code if isinstance(error, BatchclError) else ExitCode.BUG
    return ExitCode.DONE if summary is not None and summary.tolerated else ExitCode.FAILURES


def command(*words: str) -> str:
    """A batchcl command line for messages: quoted for the shell, in backticks."""
    return f"`{shlex.join(('batchcl', *words))}`"
