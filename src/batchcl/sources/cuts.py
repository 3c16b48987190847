"""Guesses where to cut the keys ahead of a listing, from the keys that it has just read.

S3 tells nothing of what lies ahead. But a page shows at which character its keys go on, and how far within the page;
counting on from there gives names that cut what is ahead into ranges of some pages. Keys aren't numbers, so a range
may come out empty or huge: `Scale` learns from that to count by more or less, and further left in the key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

__all__ = ["Scale"]

_TARGET_PAGES: Final = 4.0
"""A range of so many pages is worth its overlap with the next one, and small enough to be read beside fifteen."""
_WEIGHT: Final = 0.3
_MOST_STEPS: Final = 8
_SAMPLES: Final = 24
_FEW: Final = 3
"""A place in the key with at most so many characters in a page is no digit that counts on."""
_SURROGATES: Final = range(0xD800, 0xE000)
_CHARACTERS: Final = 0x110000


class Scale:
    """How far ahead to cut: `steps` units, each of which is a character `lift` places left of where a page moves on.

    At `lift` 0 a unit is what a page moves on by.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._lift = 0
        self._steps = 4
        self._place = 0
        self._mean_pages = _TARGET_PAGES

    def cuts(self, keys: Sequence[str], *, at_most: int) -> Iterator[str]:
        """Rising names behind the last of `keys`, which are those of one page; there need not be such keys."""
        last = keys[-1]
        earlier = keys[max(0, min(len(keys) * 3 // 4, len(keys) - 2))]
        place = _common_length(earlier, last)
        if place >= min(len(earlier), len(last)):
            return
        digits = _digits(keys, place)
        unit = 1
        if not self._lift:
            unit = 4 * max(1, _distance(earlier[place], last[place], digits))
        self._place = place = place - self._lift
        previous = last
        for number in range(1, at_most + 1):
            name = _counted_on(last, place, number * self._steps * unit, digits, floor=len(self._prefix))
            if name is None:
                return
            if name > previous:
                yield name
                previous = name

    def learn(self, pages: int, *, last: str, first_behind: str) -> None:
        """A range that these guesses had made came out at so many pages, with these keys on both sides of its end."""
        self._mean_pages += _WEIGHT * (pages - self._mean_pages)
        if self._mean_pages < _TARGET_PAGES / 2:
            self._raise(last, first_behind)
        elif self._mean_pages > 2 * _TARGET_PAGES:
            self.lower()
        else:
            return
        self._mean_pages = _TARGET_PAGES

    def lower(self) -> None:
        """Cut closer: what these guesses had made is longer than it was to be."""
        if self._steps > 1:
            self._steps //= 2
        elif self._lift:
            self._lift -= 1
            self._steps = _MOST_STEPS

    def _raise(self, last: str, first_behind: str) -> None:
        """Cut farther ahead: at once past what the keys on both sides have in common."""
        shared = _common_length(last, first_behind)
        if shared < self._place:
            self._lift += self._place - shared
            self._steps = 1
        elif self._steps < _MOST_STEPS:
            self._steps *= 2
        else:
            self._lift += 1
            self._steps = 1


def _common_length(one: str, other: str) -> int:
    """How many characters both begin with."""
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return min(len(one), len(other))


def _digits(keys: Sequence[str], place: int) -> str:
    """The characters by which keys count, in order: those of every place from `place` on that takes many values."""
    sample = keys[:: max(1, len(keys) // _SAMPLES)]
    columns = (set(column) for column in zip(*(key[place:] for key in sample), strict=False))
    return "".join(sorted(set().union(*(column for column in columns if len(column) > _FEW))))


def _distance(one: str, other: str, digits: str) -> int:
    if one in digits and other in digits:
        return digits.index(other) - digits.index(one)
    return ord(other) - ord(one)


def _counted_on(key: str, place: int, units: int, digits: str, *, floor: int) -> str | None:
    """The key up to `place`, so many units on, with carry; None where that leaves the prefix of length `floor`."""
    counted = ""
    for here in range(place, floor - 1, -1):
        value = digits.find(key[here])
        if value >= 0:
            units, rest = divmod(value + units, len(digits))
            counted = digits[rest] + counted
            if not units:
                return key[:here] + counted
        elif here == place:
            following = _character(ord(key[here]) + units)
            return None if following is None else key[:here] + following
        else:
            counted = key[here] + counted
    return None


def _character(code: int) -> str | None:
    if code in _SURROGATES:
        code = _SURROGATES.stop
    return chr(code) if code < _CHARACTERS else None
