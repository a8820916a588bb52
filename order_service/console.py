"""Entry point of `order-service`. Where only the SDK is installed, it says what to install."""

import sys

from order_service import __name__ as package


def main() -> None:
    """Run the command line; exit with 1 and one line if a library is missing."""
    try:
        from order_service.cli import main as run  # noqa: PLC0415, its imports may be missing

        run()
    except ModuleNotFoundError as error:  # also in `run`: a command imports what only it needs
        if error.name is None or error.name.partition(".")[0] == package:
            raise
        sys.exit(f"order-service: {error.name} is not installed: pip install 'order-service[service]'")
