"""Generates the contracts and writes them into the checkout."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from order_service.contracts import (
    asyncapi,
    catalogue,
    chart_files,
    dashboards,
    metrics_page,
    reasons_page,
    settings_page,
)
from order_service.contracts.source import Source

ROOT: Final = Path(__file__).parents[2]
CHART: Final = ROOT / "deploy" / "helm" / "order-service"
FILES: Final[dict[Path, Callable[[Source], str]]] = {
    ROOT / "asyncapi.json": asyncapi.text,
    ROOT / "docs" / "events.md": catalogue.text,
    ROOT / "docs" / "reference" / "settings.md": lambda _: settings_page.text(),
    ROOT / "docs" / "reference" / "metrics.md": lambda _: metrics_page.text(),
    ROOT / "docs" / "operations" / "reasons.md": lambda _: reasons_page.text(),
    CHART / "files" / "settings.yaml": lambda _: chart_files.settings_text(),
    CHART / "files" / "topics.yaml": lambda _: chart_files.topics_text(),
} | {
    CHART / "files" / "dashboards" / f"{name}.json": partial(lambda dashboard, _: dashboard.text(), dashboard)
    for name, dashboard in dashboards.DASHBOARDS.items()
}
"""Each generated file of a checkout, and the function that generates its text."""


if __name__ == "__main__":
    for file, text in FILES.items():
        file.write_text(text(Source()), encoding="utf-8")
