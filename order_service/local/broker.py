"""One Kafka node as a process of ours: start, stop, kill, and ask whether it answers."""

from __future__ import annotations

import errno
import secrets
import socket
import struct
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from order_service.errors import EmbeddedError
from order_service.local.supervisor import Child, open_log
from order_service.local.watcher import AT_ONCE, kill_group, watched

HOST = "127.0.0.1"
LOG = "kafka.log"
FREE_PORTS = range(20_000, 32_000)
"""Below the range from which Linux and macOS take ports for outgoing connections. Inside it, a client that calls a
stopped broker again and again can be given the broker's own port, connect to itself, and keep the broker out."""

METADATA_REQUEST = struct.pack(">ihhihi", 14, 3, 1, 1, -1, 0)
"""Size, api key 3 (Metadata), version 1, correlation id, no client id, no topics. Source: Kafka protocol guide."""

HINTS = {
    "Address already in use": "its port is taken: set ORDERS_KAFKA_PORT to another one",
    "insufficient memory": "there is too little memory: it needs about 600 MB",
    "Could not reserve enough space": "there is too little memory: it needs about 600 MB",
}


_ports_to_give = deque(secrets.SystemRandom().sample(FREE_PORTS, len(FREE_PORTS)))


def free_port() -> int:
    """Find a loopback port that is free.

    A process gets each port once before it gets one again: what it is for may not listen there yet.
    """
    for _ in range(len(_ports_to_give)):
        port = _ports_to_give.popleft()  # in one step: several threads may ask
        _ports_to_give.append(port)
        if not is_taken(port):
            return port
    raise EmbeddedError(f"no free port on {HOST} between {FREE_PORTS.start} and {FREE_PORTS.stop}")


def is_taken(port: int) -> bool:
    """Say whether somebody listens on this loopback port."""
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
    """Ask for the cluster's metadata; it answers once the node is a broker that its controller has let in.

    Shape: 4 bytes size, 4 bytes correlation id, 4 bytes count of brokers, then what we do not read.
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

    `command` runs in `directory`, and its output is added to `kafka.log` there. Start and stop block, for tests and
    scripts (`asyncio.to_thread` elsewhere); `child` is the same node for the supervisor of `up`.
    """

    def __init__(
        self,
        command: Sequence[str],
        directory: Path,
        port: int,
        start_within_s: float = 60.0,
        stop_within_s: float = 10.0,
    ) -> None:
        self.command = list(command)
        self.directory = directory
        self.port = port
        self.log_path = directory / LOG
        self._start_within_s = start_within_s
        self._stop_within_s = stop_within_s
        self._log_start = 0
        self._watcher: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap_servers(self) -> str:
        """Where clients find it."""
        return f"{HOST}:{self.port}"

    def answers(self) -> bool:
        """Say whether the node answers clients now."""
        return metadata_answers(self.port)

    def start(self) -> Self:
        """Start the node and return when it answers; EmbeddedError says in one line why it does not."""
        if self._watcher is not None:
            raise EmbeddedError("this Kafka runs already: stop it first")
        self._get_ready()
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
        """Stop the node in order; its data is whole. One that does not end in time is killed."""
        self._let_go(b"", self._stop_within_s + 2.0)

    def kill(self) -> None:
        """End the node as a crash would, and return when it is gone."""
        self._let_go(AT_ONCE, 5.0)

    def child(self) -> Child:
        """Describe the node to the supervisor, which starts, restarts and stops it."""
        self._get_ready()
        return Child(
            name="kafka",
            command=tuple(self.command),
            directory=self.directory,
            log_path=self.log_path,
            ready=self.answers,
            ready_within_s=self._start_within_s,
            why=self.why,
        )

    def why(self) -> str:
        """Find in the log, from the last start on, what a person should know about an end."""
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            text = log.read().decode(errors="replace")
        hint = next((hint for sign, hint in HINTS.items() if sign in text), None)
        return f"{hint or _last_error(text)} (log: {self.log_path})"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _get_ready(self) -> None:
        if is_taken(self.port):
            line = f"port {self.port} is taken: end what listens there, or set ORDERS_KAFKA_PORT to another one"
            raise EmbeddedError(line)
        self.log_path.touch()
        self._log_start = self.log_path.stat().st_size

    def _wait_until_it_answers(self, watcher: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self._start_within_s
        while not self.answers():
            if watcher.poll() is not None:
                raise EmbeddedError(f"Kafka ended while it started: {self.why()}")
            if time.monotonic() > deadline:
                raise EmbeddedError(f"Kafka did not answer within {self._start_within_s:g} s: {self.why()}")
            time.sleep(0.05)

    def _let_go(self, last_word: bytes, within_s: float) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is None:
            return
        try:
            watcher.communicate(last_word, timeout=within_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            # Also when the watcher itself was killed, or we are interrupted while we wait: nobody stays behind.
            kill_group(watcher.pid)
            watcher.wait()


def _last_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if " ERROR " in line or line.startswith(("Error", "Exception", "Caused by"))]
    return (errors or lines or ["it said nothing"])[-1][:300]
