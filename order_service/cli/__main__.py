"""`python -m order_service.cli`: how `up` starts its children, wherever the script lies."""

from order_service.cli import main

main()
