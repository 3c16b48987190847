"""A test set out of a training set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["held_out"]


def held_out(groups: Sequence[str], *, share: float, seed: int) -> frozenset[int]:
    """Places of a `share` of the members, drawn so that each group gives its part and keeps at least one.

    The largest remainders decide where a group's part is not a whole number, so the total is right to one member
    unless groups of one are in the way. The same arguments give the same places.

    Args:
        groups: each member's group, such as its label.
        share: 0 to 1.
        seed: of the draw.
    """
    members: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    rng = np.random.default_rng(seed)
    counts = {group: min(int(len(places) * share), len(places) - 1) for group, places in members.items()}
    missing = round(len(groups) * share) - sum(counts.values())
    for group in sorted(members, key=lambda g: (int(len(members[g]) * share) - len(members[g]) * share, g)):
        if missing > 0 and counts[group] + 1 < len(members[group]):
            counts[group] += 1
            missing -= 1
    drawn: set[int] = set()
    for group in sorted(members):
        order = rng.permutation(len(members[group]))
        drawn.update(members[group][n] for n in order[: counts[group]])
    return frozenset(drawn)
