"""A User Service that answers nobody for a while."""

from contextlib import contextmanager

from order_service.users.stub import Mode


@contextmanager
def hanging(users):
    """Let the User Service answer nobody."""
    users.stub.mode = Mode.HANG
    try:
        yield
    finally:
        users.stub.mode = Mode.OK
