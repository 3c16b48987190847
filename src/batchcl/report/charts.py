"""The report's charts: small SVGs without text from the tables, in the colours of the page's stylesheet.

Vega-Lite draws them in this process, without network access. Colours are CSS variables, so that a chart follows the
page into dark mode and print. Charts contain numbers and dates only: names of labels are in the page around them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import polars as pl

if TYPE_CHECKING:
    import altair as alt

__all__ = ["confidence_chart", "curve_chart", "share_chart", "throughput_chart"]

_WIDTH: Final = 250
_HEIGHT: Final = 96
_TIME_HEIGHT: Final = 150
_MAX_POINTS: Final = 45
"""Of a curve's nights or steps, above which points would run into each other."""
_MOST_DATES: Final = 4
"""Of an axis, after the first."""
_DAY_S: Final = 86_400.0
_TEN_MINUTES_S: Final = 600.0

_INK, _QUIET, _LINE, _ACCENT = "var(--ink)", "var(--quiet)", "var(--line)", "var(--accent)"
_NOISE: Final = re.compile(
    r'<path class="(?:background|foreground)"[^>]*/>| (?:opacity|stroke-width)="1"'
    r'| (?:aria-[a-z]+|role|class|pointer-events|xmlns:xlink|version|font-family)="[^"]*"'
)
"""What Vega writes and a browser doesn't need: a third of the bytes."""


def confidence_chart(histogram: pl.DataFrame, *, cut_off: float | None = None) -> str:
    """A histogram of confidences from 0 to 100 %.

    Args:
        histogram: `from`, `to`, `detections` for each bin.
        cut_off: the lowest confidence that was requested; drawn as a line.
    """
    import altair as alt

    bars = (
        alt.Chart(_values(histogram, "from", "to", "detections"))
        .mark_bar(color=_ACCENT, orient="vertical", stroke="var(--page)", strokeWidth=1)
        .encode(
            x=_axis(alt.X("from:Q"), domain=(0, 100), values=[0, 25, 50, 75, 100]),
            x2="to:Q",
            y=_axis(alt.Y("detections:Q"), count=3, numbers="~s"),
            y2=alt.datum(0),
        )
    )
    if not cut_off:
        return _svg(bars)
    line = alt.Chart(_data([{"at": cut_off}])).mark_rule(color=_INK, strokeDash=[3, 3]).encode(x="at:Q")
    return _svg(bars + line)


def share_chart(nights: pl.DataFrame) -> str:
    """The share of a label over the nights.

    Args:
        nights: `date` and `share` (0 to 1) of each night.
    """
    import altair as alt

    dates = nights["date"].sort()
    step = -(-(len(dates) - 1) // _MOST_DATES) or 1
    labelled = dates.gather_every(step).cast(pl.Datetime("ms")).dt.epoch("ms").to_list()
    points = {"filled": True, "size": 22, "color": _ACCENT} if nights.height <= _MAX_POINTS else False
    return _svg(
        alt.Chart(_values(nights.with_columns(pl.col("date").cast(pl.String)), "date", "share"))
        .mark_line(color=_ACCENT, point=points, strokeWidth=1.5)
        .encode(
            x=_axis(alt.X("date:T"), values=labelled, numbers="%-d %b", is_time=True),
            y=_axis(alt.Y("share:Q"), count=3, numbers="~%", zero=True),
        )
    )


def throughput_chart(throughput: pl.DataFrame, *, width: int) -> str:
    """Scored images per second over time, as steps.

    Args:
        throughput: `from` and `to` (UTC) and `images_per_second` of each interval.
        width: in pixels.
    """
    import altair as alt

    seconds = (throughput["to"].max() - throughput["from"].min()).total_seconds()  # type: ignore[operator,union-attr]
    day = "%-d %b %H:%M" if seconds > _DAY_S else "%H:%M:%S" if seconds < _TEN_MINUTES_S else "%H:%M"
    text = throughput.with_columns(pl.col("from", "to").dt.strftime("%Y-%m-%dT%H:%M:%S%.3fZ"))
    chart = (
        alt.Chart(_values(text, "from", "to", "images_per_second"))
        .mark_bar(color=_ACCENT, orient="vertical")
        .encode(
            x=_axis(alt.X("from:T"), count=max(3, width // 110), numbers=day, is_time=True),
            x2="to:T",
            y=_axis(alt.Y("images_per_second:Q"), count=4, numbers="~s"),
            y2=alt.datum(0),
        )
    )
    return _svg(chart, width=width, height=_TIME_HEIGHT)


def curve_chart(curve: pl.DataFrame, *, chosen: tuple[float, float] | None = None) -> str:
    """A precision-recall curve.

    Args:
        curve: `recall` and `precision` of each threshold, 0 to 1.
        chosen: recall and precision of a point to mark.
    """
    import altair as alt

    line = (
        alt.Chart(_values(curve.sort("recall", "precision", descending=[False, True]), "recall", "precision"))
        .mark_line(color=_ACCENT, strokeWidth=1.5, interpolate="step-before")
        .encode(
            x=_axis(alt.X("recall:Q"), domain=(0, 1), values=[0, 0.25, 0.5, 0.75, 1], numbers="~%"),
            y=_axis(alt.Y("precision:Q"), domain=(0, 1), count=3, numbers="~%"),
            order="recall:Q",
        )
    )
    if chosen is None:
        return _svg(line)
    at = _data([dict(zip(("recall", "precision"), chosen, strict=True))])
    return _svg(line + alt.Chart(at).mark_point(color=_INK, filled=True, size=40).encode(x="recall:Q", y="precision:Q"))


def _values(frame: pl.DataFrame, *columns: str) -> alt.InlineData:
    return _data(frame.select(columns).to_dicts())


def _data(values: list[dict[str, Any]]) -> alt.InlineData:
    import altair as alt

    return alt.InlineData(values)


def _axis(
    channel: Any,
    *,
    domain: tuple[float, float] | None = None,
    values: list[float] | None = None,
    count: int | None = None,
    numbers: str | None = None,
    is_time: bool = False,
    zero: bool | None = None,
) -> Any:
    """`channel` without a title, with `numbers` as its format."""
    import altair as alt

    options: dict[str, Any] = {
        "domain": None if domain is None else list(domain),
        "type": "utc" if is_time else None,
        "zero": zero,
    }
    scale = alt.Scale(**{name: value for name, value in options.items() if value is not None})
    axis: dict[str, Any] = {"values": values, "tickCount": count, "format": numbers}
    given = {name: value for name, value in axis.items() if value is not None}
    return channel.title(None).scale(scale).axis(alt.Axis(**given))


def _svg(chart: Any, *, width: int = _WIDTH, height: int = _HEIGHT) -> str:
    """Draw `chart`. The SVG has no text alternative: the page describes it."""
    import vl_convert

    spec = (
        chart.properties(width=width, height=height, padding=2)
        .configure(background="transparent", aria=False)
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=_QUIET,
            labelFontSize=11,
            domainColor=_LINE,
            gridColor=_LINE,
            tickColor=_LINE,
            labelPadding=4,
            labelOverlap=True,
        )
        .configure_axisX(grid=False)
        .configure_axisY(domain=False, ticks=False)
    )
    text = spec.to_json(validate=False)  # altair has validated each part when it was made
    drawn = _NOISE.sub("", vl_convert.vegalite_to_svg(text, allowed_base_urls=[]))
    return drawn.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
