"""Exceptions that stop a subscriber: a missing version, or a second process under the same name."""

from order_service.errors import HistoryError, OrderServiceError


class HoleError(HistoryError):
    """A version of an order is missing: a result that is built from its events would be wrong."""


class OvertakenError(OrderServiceError):
    """Another process has applied this event under the same name; the transaction of this process was rolled back."""
