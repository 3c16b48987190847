from __future__ import annotations

from batchcl.scoring.outages import DISTINCT_IMAGES, PATIENCE_AT_START_S, PATIENCE_S, Outages


def test_one_image_that_fails_again_and_again_is_no_outage() -> None:
    outages = Outages()
    assert not any(outages.unanswered("a", float(now)) for now in range(100))


def test_many_images_without_any_answer_are_one_until_the_next_answer() -> None:
    outages = Outages()
    found = [outages.unanswered(f"{number}", 0.0) for number in range(DISTINCT_IMAGES + 1)]
    assert found == [False] * (DISTINCT_IMAGES - 1) + [True, True]
    outages.answered()
    assert not outages.unanswered("0", 1.0)


def test_answers_between_errors_are_no_outage() -> None:
    outages = Outages()
    for number in range(100):
        assert not outages.unanswered(f"{number}", 0.0)
        if number % 5 == 0:
            outages.answered()


def test_a_service_that_never_answered_is_given_up_sooner() -> None:
    new, known = Outages(), Outages()
    known.answered()
    for each in (new, known):
        each.unanswered("a", 100.0)
    assert not new.is_hopeless(100.0 + PATIENCE_AT_START_S)
    assert new.is_hopeless(101.0 + PATIENCE_AT_START_S)
    assert not known.is_hopeless(100.0 + PATIENCE_S)
    assert known.is_hopeless(101.0 + PATIENCE_S)
    known.answered()
    assert not known.is_hopeless(1e6)
