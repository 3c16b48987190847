"""What a call that brought no labels was, and what of it is reported to the pacer."""

from __future__ import annotations

from batchcl.errors import CallError, HostError, ImageError, ThrottledError
from batchcl.pacing.pacer import Pacer

__all__ = ["tell", "was_sent"]


def was_sent(error: CallError) -> bool:
    """Whether the service was asked at all; it isn't for an image whose bytes can't be had."""
    return not (isinstance(error, HostError) or (isinstance(error, ImageError) and error.status is None))


def tell(pacer: Pacer, error: CallError, *, sent_at: float) -> None:
    """Report to `pacer` that the call that began at `sent_at` ended in `error`.

    The turn of an image that can't be read is given back, so that the service gets as many calls as it takes. It is
    not where reading may succeed later: what waits for its next attempt must not become more and more.
    """
    match error:
        case ThrottledError():
            pacer.throttled(sent_at=sent_at, by_model=not (error.sudden or error.downloads))
        case HostError():
            pacer.unsent(sent_at=sent_at, give_back=False)
        case ImageError(status=None):
            pacer.unsent(sent_at=sent_at, give_back=True)
        case ImageError():
            pacer.succeeded(sent_at=sent_at)
