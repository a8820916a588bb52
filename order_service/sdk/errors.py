"""What stops a subscriber: a version that is missing, or a twin that was first."""

from order_service.errors import HistoryError, OrderServiceError


class HoleError(HistoryError):
    """A version of an order is missing: what is built on its events would be wrong."""


class OvertakenError(OrderServiceError):
    """Another process has applied what we were about to apply, under the same name: nothing of ours is kept."""
