"""One Kafka for all processes of a test run. The controller of pytest-xdist starts it when the first process asks.

A broker per process would cost three minutes of processor time more.
"""

from contextlib import ExitStack, suppress
from multiprocessing.connection import Client, Listener
from pathlib import Path
from threading import Thread
from typing import Self

from order_service.errors import EmbeddedError
from tests.support.kafka import running_kafka

START_WITHIN_S = 110.0


class SharedKafka:
    """Answers each connection with the bootstrap servers, and starts the broker before the first answer."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running = ExitStack()
        self._listener = Listener(backlog=64)
        self._answer: str | EmbeddedError = ""

    def start(self) -> Self:
        """Start the thread that answers."""
        Thread(target=self._serve, daemon=True).start()
        return self

    @property
    def address(self) -> str:
        """The address for `ask_for_kafka`."""
        return str(self._listener.address)

    def stop(self) -> None:
        """Stop the broker, if one was started."""
        self._running.close()

    def _serve(self) -> None:
        while True:
            with self._listener.accept() as connection:
                if not self._answer:
                    self._answer = self._start_broker()
                with suppress(OSError):  # the process that asked has ended
                    connection.send(self._answer)

    def _start_broker(self) -> str | EmbeddedError:
        try:
            return self._running.enter_context(running_kafka(self._directory))
        except EmbeddedError as error:
            return error
        except Exception as error:  # noqa: BLE001, every process must learn the cause
            return EmbeddedError(f"Kafka did not start: {error!r}")


def ask_for_kafka(address: str) -> str:
    """Return the bootstrap servers of the Kafka that all processes share. Raises EmbeddedError if it did not start."""
    with Client(address) as connection:
        assert connection.poll(START_WITHIN_S), f"Kafka did not start within {START_WITHIN_S:.0f} s"
        servers = connection.recv()
    if isinstance(servers, EmbeddedError):
        raise servers
    return str(servers)
