"""A TLS context whose files are read again when they change, so that certificates are replaced in a running process."""

import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import structlog

from order_service.errors import KafkaAwayError, SetupError

log = structlog.get_logger()


class FileContext(ssl.SSLContext):
    """A context for clients, which reads its files again for a new connection if they have changed.

    `read` returns a context with the contents of the files. It raises KafkaAwayError or SetupError if one of them
    cannot be used: at first that is the caller's, later the contents that were read last stay in use.
    """

    def __new__(cls, *_: object) -> Self:
        """Return a context for clients: it verifies certificates and host names."""
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def __init__(self, files: Sequence[Path | None], read: Callable[[], ssl.SSLContext]) -> None:
        self._files = [file for file in files if file is not None]
        self._read = read
        self._stamp = self._look()
        self._current = read()

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """Return the TLS of a new connection."""
        stamp = self._look()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._current = self._read()
            except (KafkaAwayError, SetupError) as error:
                log.warning("Changed TLS files cannot be used; the last ones are kept.", why=str(error))
        return self._current.wrap_bio(*args, **kwargs)

    def _look(self) -> list[tuple[int, int, int] | None]:
        """Return what changes with the contents of the files."""
        stamps: list[tuple[int, int, int] | None] = []
        for file in self._files:
            try:
                stat = file.stat()
            except OSError:  # it may be replaced just now
                stamps.append(None)
            else:
                stamps.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
        return stamps
