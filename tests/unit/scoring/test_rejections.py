from __future__ import annotations

from batchcl.errors import RejectedError
from batchcl.images import ImageRef
from batchcl.scoring.queue import WorkItem
from batchcl.scoring.rejections import MAX_IN_A_ROW, Rejection, Rejections


def rejection() -> Rejection:
    item = WorkItem(ImageRef(uri="s3://b/k", bucket="b", key="k"), shard=0, position=0)
    return Rejection(item, RejectedError("no", code="AccessDeniedException", status=400))


def test_a_rejection_is_held_until_a_later_call_is_accepted() -> None:
    calls = Rejections()
    earlier, rejected, later = (calls.sent() for _ in range(3))
    assert calls.rejected(rejected, held := rejection())
    assert calls.accepted(earlier) == []
    assert calls.held == [held]
    assert calls.accepted(later) == [held]
    assert len(calls) == 0


def test_a_rejection_after_a_later_acceptance_is_not_held() -> None:
    calls = Rejections()
    rejected, later = calls.sent(), calls.sent()
    assert calls.accepted(later) == []
    assert not calls.rejected(rejected, rejection())


def test_only_open_calls_interrupt_a_row_of_rejections() -> None:
    calls = Rejections()
    numbers = [calls.sent() for _ in range(MAX_IN_A_ROW + 1)]
    for number in numbers:
        if number != numbers[5]:
            calls.ended(number)
            assert calls.rejected(number, rejection())
    assert calls.in_a_row() == []
    calls.ended(numbers[5])  # throttled, say
    assert len(calls.in_a_row()) == MAX_IN_A_ROW
