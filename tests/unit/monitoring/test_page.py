"""docs/metrics.md lists the metrics, the kinds of trouble and the alerts as they are."""

from __future__ import annotations

from pathlib import Path

from batchcl.monitoring.metrics import METRICS, Metric
from batchcl.monitoring.trouble import TROUBLE
from unit.monitoring.test_alerts import RULES

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


def table(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its header."""
    lines = PAGE.read_text().split(f"# {heading}\n", 1)[1].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def code(text: str | None) -> str:
    return f"`{text}`" if text else ""


def row(metric: Metric) -> list[str]:
    labels = ", ".join(map(code, metric.labels))
    return [code(metric.name), code(metric.otel), metric.kind, code(metric.unit), labels, metric.help]


def test_the_page_lists_all_metrics():
    assert table("Metrics") == [row(metric) for metric in METRICS.values()]


def test_the_page_lists_all_kinds_of_trouble():
    assert table("Trouble") == [[code(kind), text] for kind, text in TROUBLE.items()]


def test_the_page_lists_all_alerts():
    assert [cells[0] for cells in table("Alerts")] == [code(rule["alert"]) for rule in RULES]
