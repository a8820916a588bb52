"""`order-service`, where all that it needs is installed; where only the SDK is, it says what to install."""

import sys

from order_service import __name__ as ours


def main() -> None:
    """Run the command line; exit with 1 and one line if it lacks a library."""
    try:
        from order_service.cli import main as run  # noqa: PLC0415, what it imports may be missing
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == ours:
            raise
        sys.exit(f"order-service: {error.name} is not installed: pip install 'order-service[service]'")
    run()
