"""A User Service that fails for a while."""

from contextlib import contextmanager

from order_service.users.stub import Mode


def hanging(users):
    """Keep the User Service from answering."""
    return failing(users, Mode.HANG)


@contextmanager
def failing(users, mode):
    """Make the User Service fail in this way."""
    users.stub.mode = mode
    try:
        yield
    finally:
        users.stub.mode = Mode.OK
