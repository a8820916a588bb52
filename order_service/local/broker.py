"""One Kafka node as a child process: start, stop, kill, and check whether it answers."""

from __future__ import annotations

import errno
import secrets
import socket
import struct
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from order_service.errors import EmbeddedError
from order_service.runtime.supervisor import Child, open_log
from order_service.runtime.watcher import KILL_NOW, kill_group, watched

HOST = "127.0.0.1"
LOG = "kafka.log"
FREE_PORTS = range(20_000, 32_000)
"""Below the range of ports for outgoing connections on Linux and macOS. A client that keeps calling a stopped broker
could get the broker's own port from that range, connect to itself, and block the broker."""

METADATA_REQUEST = struct.pack(">ihhihi", 14, 3, 1, 1, -1, 0)
"""Size, api key 3 (Metadata), version 1, correlation id, no client id, no topics. Source: Kafka protocol guide."""

HINTS = {
    "Address already in use": "its port is taken: set ORDERS_KAFKA_PORT to another one",
    "insufficient memory": "there is too little memory: it needs about 600 MB",
    "Could not reserve enough space": "there is too little memory: it needs about 600 MB",
}

ERRORS = (" ERROR ", "Error response from daemon")
"""What is in the line of an error: of Kafka's log, and of the docker client, which adds how to get help."""
ERROR_STARTS = ("Error", "Exception", "Caused by")

_ports = deque(secrets.SystemRandom().sample(FREE_PORTS, len(FREE_PORTS)))


def free_port() -> int:
    """Return a free loopback port.

    A process gets a port again only after all others, because the new owner may not listen there yet.
    """
    for _ in range(len(_ports)):
        port = _ports.popleft()  # atomic: several threads may call this
        _ports.append(port)
        if not is_taken(port):
            return port
    raise EmbeddedError(f"no free port on {HOST} between {FREE_PORTS.start} and {FREE_PORTS.stop}")


def is_taken(port: int) -> bool:
    """Return whether a process listens on this loopback port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return True
            raise EmbeddedError(f"port {port} cannot be used: {error.strerror}; set ORDERS_KAFKA_PORT") from error
    return False


def metadata_answers(port: int, within_s: float = 1.0) -> bool:
    """Return whether a metadata request lists a broker, which it does once the controller has registered the node.

    Shape: 4 bytes size, 4 bytes correlation id, 4 bytes count of brokers; the rest is not read.
    """
    try:
        with socket.create_connection((HOST, port), timeout=within_s) as connection:
            connection.sendall(METADATA_REQUEST)
            with connection.makefile("rb") as answer:
                head = answer.read(12)
    except OSError:
        return False
    return len(head) == 12 and struct.unpack(">iii", head)[2] > 0


class Broker:
    """A Kafka node that lives no longer than this process.

    `command` runs in `directory`, and its output is appended to `kafka.log` there. `clean` removes what an earlier run
    left behind; it is called before each start and after each end. Start and stop block, for tests and
    scripts (use `asyncio.to_thread` elsewhere). `child` describes the same node to the supervisor of `up`.
    """

    def __init__(
        self,
        command: Sequence[str],
        directory: Path,
        port: int,
        start_within_s: float = 60.0,
        stop_within_s: float = 10.0,
        clean: Callable[[], object] = lambda: None,
    ) -> None:
        self.command = list(command)
        self.directory = directory
        self.port = port
        self.log_path = directory / LOG
        self._start_within_s = start_within_s
        self._stop_within_s = stop_within_s
        self._clean = clean
        self._log_start = 0
        self._watcher: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap_servers(self) -> str:
        """The address of the node for clients."""
        return f"{HOST}:{self.port}"

    def answers(self) -> bool:
        """Return whether the node answers clients now."""
        return metadata_answers(self.port)

    def start(self) -> Self:
        """Start the node and return when it answers. Raises EmbeddedError with the cause in one line."""
        if self._watcher is not None:
            raise EmbeddedError("this Kafka is already running: stop it first")
        self._prepare()
        with open_log(self.log_path) as log:
            self._watcher = subprocess.Popen(  # noqa: S603 - our own command
                watched(self.command, self._stop_within_s),
                cwd=self.directory,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        with ExitStack() as undo:
            undo.callback(self.kill)
            self._wait_until_it_answers(self._watcher)
            undo.pop_all()
        return self

    def stop(self) -> None:
        """Stop the node cleanly, so that its data is complete. Kill it if it does not end in time."""
        self._end(b"", self._stop_within_s + 2.0)

    def kill(self) -> None:
        """Kill the node as a crash would, and return when it has ended."""
        self._end(KILL_NOW, 5.0)

    def child(self) -> Child:
        """Return the node as a child for the supervisor, which starts, restarts and stops it."""
        self._prepare()
        return Child(
            name="kafka",
            command=tuple(self.command),
            directory=self.directory,
            log_path=self.log_path,
            ready=self.answers,
            ready_within_s=self._start_within_s,
            why=self.why,
            clean=self._clean,
        )

    def why(self) -> str:
        """Return why the node ended, from its log since the last start."""
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            text = log.read().decode(errors="replace")
        hint = next((hint for message, hint in HINTS.items() if message in text), None)
        return f"{hint or _last_error(text)} (log: {self.log_path})"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _prepare(self) -> None:
        self._clean()
        if is_taken(self.port):
            line = f"port {self.port} is taken: stop the process that uses it, or set ORDERS_KAFKA_PORT to another one"
            raise EmbeddedError(line)
        self.log_path.touch()
        self._log_start = self.log_path.stat().st_size

    def _wait_until_it_answers(self, watcher: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self._start_within_s
        while not self.answers():
            if watcher.poll() is not None:
                raise EmbeddedError(f"Kafka exited while starting: {self.why()}")
            if time.monotonic() > deadline:
                raise EmbeddedError(f"Kafka did not answer within {self._start_within_s:g} s: {self.why()}")
            time.sleep(0.05)

    def _end(self, message: bytes, within_s: float) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is None:
            return
        try:
            watcher.communicate(message, timeout=within_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            # Also if the watcher itself was killed, or this wait is interrupted: no process may remain.
            kill_group(watcher.pid)
            watcher.wait()
            self._clean()


def _last_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("Run 'docker ")]
    errors = [line for line in lines if any(sign in line for sign in ERRORS) or line.startswith(ERROR_STARTS)]
    return (errors or lines or ["it wrote no output"])[-1][:300]
