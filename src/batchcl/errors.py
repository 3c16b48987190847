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

`error.code` is a stable name of what went wrong, for programs and for `batchcl explain CODE`: a `CallError` has the
service's code, every other error an `ErrorCode`. docs/troubleshooting.md has a section for each.
"""

from __future__ import annotations

import shlex
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchcl.summary import Summary

__all__ = [
    "BatchclError",
    "CallError",
    "CredentialsError",
    "CredentialsFailingError",
    "ErrorCode",
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


class ErrorCode(StrEnum):
    """What went wrong, by what the user can do about it; the page of each is a section of docs/troubleshooting.md."""

    # command line and job file
    INVALID_ARGUMENT = "InvalidArgument"
    CONFLICTING_OPTIONS = "ConflictingOptions"
    INVALID_NAME = "InvalidName"
    INVALID_JOB_FILE = "InvalidJobFile"
    INVALID_QUERY = "InvalidQuery"
    INVALID_THRESHOLDS = "InvalidThresholds"
    MISSING_EXTRA = "MissingExtra"
    UNSUPPORTED_SYSTEM = "UnsupportedSystem"
    NOT_CONFIRMED = "NotConfirmed"
    RUN_ID_TAKEN = "RunIdTaken"
    NO_SUCH_RUN = "NoSuchRun"
    RUN_NOT_DONE = "RunNotDone"
    NOTHING_TO_RETRY = "NothingToRetry"
    NO_RESULTS = "NoResults"
    SEVERAL_MODELS = "SeveralModels"
    THRESHOLD_TOO_LOW = "ThresholdTooLow"
    NOTHING_TO_COMPARE = "NothingToCompare"
    NOT_EXPORTABLE = "NotExportable"
    TARGET_EXISTS = "TargetExists"
    INVALID_TARGET = "InvalidTarget"
    WRITE_FAILED = "WriteFailed"

    # sources, labels and datasets
    EMPTY_SOURCE = "EmptySource"
    SOURCE_NOT_FOUND = "SourceNotFound"
    NO_SUCH_BUCKET = "NoSuchBucket"
    IMAGES_NOT_FOUND = "ImagesNotFound"
    UNREADABLE_SOURCE = "UnreadableSource"
    UNSUPPORTED_SOURCE = "UnsupportedSource"
    UNKNOWN_LIST_FORMAT = "UnknownListFormat"
    MALFORMED_LIST = "MalformedList"
    CORRUPT_FILE = "CorruptFile"
    SOURCE_CHANGED = "SourceChanged"
    INVALID_ARCHIVE = "InvalidArchive"
    INVALID_INVENTORY = "InvalidInventory"
    SOURCE_IN_OUTPUT_ROOT = "SourceInOutputRoot"
    NO_TEMPORARY_SPACE = "NoTemporarySpace"
    BROKEN_LISTING = "BrokenListing"
    MALFORMED_MANIFEST = "MalformedManifest"
    INVALID_ANNOTATIONS = "InvalidAnnotations"
    AMBIGUOUS_IMAGE = "AmbiguousImage"
    NO_TRUTH = "NoTruth"
    UNUSABLE_IMAGES = "UnusableImages"
    UNSUITABLE_DATASET = "UnsuitableDataset"

    # credentials, permissions and the connection to AWS
    NO_CREDENTIALS = "NoCredentials"
    INVALID_CREDENTIALS = "InvalidCredentials"
    CREDENTIALS_EXPIRED = "CredentialsExpired"
    ACCESS_DENIED = "AccessDenied"
    WRONG_REGION = "WrongRegion"
    INVALID_AWS_SETTINGS = "InvalidAwsSettings"
    CLOCK_WRONG = "ClockWrong"
    SERVICE_UNREACHABLE = "ServiceUnreachable"
    TLS = "Tls"
    PROXY = "Proxy"
    REQUEST_REFUSED = "RequestRefused"
    CALLS_REJECTED = "CallsRejected"
    QUOTA_REACHED = "QuotaReached"

    # projects, datasets and models
    NO_SUCH_MODEL = "NoSuchModel"
    NO_SUCH_RESOURCE = "NoSuchResource"
    RESOURCE_IN_USE = "ResourceInUse"
    MODEL_NOT_TRAINED = "ModelNotTrained"
    MODEL_NOT_RUNNING = "ModelNotRunning"
    RESOURCE_FAILED = "ResourceFailed"

    # output root
    OUTPUT_FAILED = "OutputFailed"
    NOT_AN_OUTPUT_ROOT = "NotAnOutputRoot"
    CORRUPT_OUTPUT = "CorruptOutput"
    NO_CONDITIONAL_WRITES = "NoConditionalWrites"

    # runs that stop
    INCOMPLETE = "Incomplete"
    INTERRUPTED = "Interrupted"
    HELD_RUN = "HeldRun"
    RUN_TAKEN_OVER = "RunTakenOver"
    TOO_MANY_FAILURES = "TooManyFailures"
    STALLED_RUN = "StalledRun"
    DEADLINE_REACHED = "DeadlineReached"
    BUDGET_USED_UP = "BudgetUsedUp"
    TIMED_OUT = "TimedOut"
    MODEL_GONE = "ModelGone"
    MODEL_LEFT_RUNNING = "ModelLeftRunning"

    # host
    EMULATOR_FAILED = "EmulatorFailed"
    STDOUT_FAILED = "StdoutFailed"
    INTERNAL_ERROR = "InternalError"


class BatchclError(Exception):
    """Any error that batchcl raises on purpose.

    Attributes:
        code: an `ErrorCode`; of a `CallError` the service's code.
        exit_code: of the command line.
        summary: of the run so far; None if none had started.
    """

    code: str = ErrorCode.INTERNAL_ERROR
    exit_code: ExitCode = ExitCode.BUG
    summary: Summary | None = None

    def __init__(self, message: str = "", *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class UsageError(BatchclError):
    """The job, a flag or a source is wrong; running it again unchanged fails again."""

    code: str = ErrorCode.INVALID_ARGUMENT
    exit_code = ExitCode.USAGE


class SourceError(UsageError):
    """A list of images is missing, empty, or malformed."""

    code: str = ErrorCode.MALFORMED_LIST


class RefusedError(BatchclError):
    """The run was refused before a call was spent."""

    code: str = ErrorCode.REQUEST_REFUSED
    exit_code = ExitCode.REFUSED


class CredentialsError(RefusedError):
    """There are no credentials, or AWS refuses them.

    Attributes:
        is_access_denied: they are valid, but lack a permission.
        may_pass: they were valid before, and have failed for less than five minutes.
        exit_code: STOPPED if they were valid before and have failed for longer (`has_lasted`), else REFUSED.
    """

    code: str = ErrorCode.NO_CREDENTIALS

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        is_access_denied: bool = False,
        may_pass: bool = False,
        has_lasted: bool = False,
    ) -> None:
        super().__init__(message, code=code or (ErrorCode.ACCESS_DENIED if is_access_denied else None))
        self.is_access_denied = is_access_denied
        self.may_pass = may_pass
        if has_lasted:
            self.exit_code = ExitCode.STOPPED


class RegionError(RefusedError):
    """A bucket is in another region than the model, so the service can't read it; `region` is its region, if known."""

    code: str = ErrorCode.WRONG_REGION

    def __init__(self, message: str, *, region: str | None = None) -> None:
        super().__init__(message)
        self.region = region


class ModelError(RefusedError):
    """The model is unknown, not trained, or not running."""


class OutputError(RefusedError):
    """The output root can't be written or read."""

    code: str = ErrorCode.OUTPUT_FAILED


class OutputCredentialsError(CredentialsError, OutputError):
    """The output root can't be written or read for lack of credentials."""


class UnreachableError(RefusedError):
    """A service does not respond, or is overloaded; a later attempt may succeed."""

    code: str = ErrorCode.SERVICE_UNREACHABLE


class StoppedError(BatchclError):
    """The run ended before its work list did, and what is done is kept; or another process works on it."""

    code: str = ErrorCode.INCOMPLETE
    exit_code = ExitCode.STOPPED


class InterruptedRunError(StoppedError):
    """The user pressed ^C."""

    code: str = ErrorCode.INTERRUPTED
    exit_code = ExitCode.INTERRUPTED


class HeldError(StoppedError):
    """Another process works on the run, or on a run that may score the same images.

    `sessions` is the folder of that run's sessions, below the output root.
    """

    code: str = ErrorCode.HELD_RUN

    def __init__(self, message: str, *, sessions: str) -> None:
        super().__init__(message)
        self.sessions = sessions


class TooManyFailuresError(StoppedError):
    """More images failed than `max_failures` tolerates."""

    code: str = ErrorCode.TOO_MANY_FAILURES
    exit_code = ExitCode.FAILURES


class StalledError(StoppedError):
    """For 15 minutes no image got an outcome, although calls were due and the model was running."""

    code: str = ErrorCode.STALLED_RUN


class ModelGoneError(StoppedError):
    """The model stopped during the run."""

    code: str = ErrorCode.MODEL_GONE


class CallError(BatchclError):
    """One call failed.

    Attributes:
        code: the service's error code, or batchcl's own if there is no response.
        status: the HTTP status; None without a response.
        request_id: of the response; may be empty.
    """

    def __init__(self, message: str, *, code: str, status: int | None = None, request_id: str = "") -> None:
        super().__init__(message, code=code)
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
