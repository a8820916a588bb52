"""`python -m order_service.cli`: how `up` starts its children, wherever the script is installed."""

from order_service.cli import main

main()
