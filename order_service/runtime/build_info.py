"""The version of a process as a metric, so that the versions of all processes can be compared."""

from typing import Final

from prometheus_client import Gauge

from order_service import __version__

BUILD: Final = Gauge(
    "orders_build_info", "1, with the component (worker, projector or web) and its version.", ["component", "version"]
)


def report_build(component: str) -> None:
    """Show at `/metrics` what this process is, and its version."""
    BUILD.labels(component, __version__).set(1)
