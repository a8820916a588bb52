"""A User Service that does not answer for a while."""

from contextlib import contextmanager

from order_service.users.stub import Mode


@contextmanager
def hanging(users):
    """Keep the User Service from answering."""
    users.stub.mode = Mode.HANG
    try:
        yield
    finally:
        users.stub.mode = Mode.OK
