"""Those who stand outside while a run is under way: callers of HTTP, a reader of its stream, a subscriber of the SDK.

A caller repeats a request under the same Idempotency-Key, at any server, until it gets a final answer. If it is told
where to ask for the outcome of the copy that it sent, it does that every other time.
"""

import json
import random
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, Final

from chaos.subscriber import OPEN
from chaos.verdict.onlookers import STATUS_AFTER, Answered, End, Reader, Shown
from order_service.local.broker import free_port
from tests.support.service import Service, WorkerProcess, until
from tests.support.shop import Answer, Http

PREFIX: Final = "http-"
"""How the correlation ids of requests begin."""
CALLERS: Final = 3
SERVERS: Final = 2
PAUSE_S: Final = 0.5
AGAIN_S: Final = 0.3
ANSWERED_WITHIN_S: Final = 150.0
"""A user's answer may take its deadline, and Kafka may be away again and again."""
NOT_FINAL: Final = frozenset({202, 408, 429, 500, 502, 503, 504})
"""Undecided, or refused for the moment only: the same key tries it again."""
LINES: Final = [{"sku": "sku-1", "quantity": 2, "unit_price": 1250}]
TOTAL: Final = 2500
STREAM_SILENT_S: Final = 20.0
"""A heartbeat comes every 15 s."""


class Caller(threading.Thread):
    """Walks one order after the other through its life, and notes the final answer to each request."""

    def __init__(self, name: str, seed: int, ports: list[int]) -> None:
        super().__init__(name=name, daemon=True)
        self.answers: list[Answered] = []
        self.problems: list[str] = []
        self.is_over = threading.Event()
        self._chance = random.Random(f"{name} of {seed}")
        self._ports = ports
        self._count = 0

    def run(self) -> None:
        """Call until it is over."""
        while not self.is_over.is_set():
            for method, path, body in self._life():
                self.is_over.wait(PAUSE_S)
                if self.is_over.is_set():
                    return
                self._call(method, path, body)

    def _life(self) -> Iterator[tuple[str, str, object]]:
        """Yield the requests about one order: mostly what can come next, at times what cannot."""
        user = self._chance.choice((*("user-{}",) * 9, "unknown-{}")).format(self._chance.randrange(97))
        yield "POST", "/v1/orders", {"user_id": user, "currency": "EUR", "lines": LINES}
        if not self.answers or (order_id := self.answers[-1].order_id) is None:
            return
        here = f"/v1/orders/{order_id}"
        steps = [
            ("PATCH", here, {"metadata": {"n": str(self._count)}}),
            ("POST", f"{here}/pay", {"payment_id": f"pay-{order_id}"[:60], "amount": TOTAL, "currency": "EUR"}),
            ("POST", f"{here}/ship", {"carrier": "DHL", "tracking_number": "T-1"}),
            ("POST", f"{here}/deliver", {}),
            ("POST", f"{here}/cancel", {"reason": "customer_request"}),
        ]
        for step in steps[:4]:
            if self._chance.random() < 0.2:
                yield self._chance.choice(steps)
            yield step

    def _call(self, method: str, path: str, body: object) -> None:
        self._count += 1
        key = f"{PREFIX}{self.name}-{self._count}"
        headers = {"Idempotency_Key": key, "X_Correlation_Id": key, "Prefer": "wait=3"}
        request = method, path, body
        waited = threading.Event()
        for _ in range(round(ANSWERED_WITHIN_S / AGAIN_S)):
            try:
                answer = Http(self._chance.choice(self._ports)).ask(*request, **headers)
            except (OSError, HTTPException):
                waited.wait(AGAIN_S)
                continue
            if answer.status not in NOT_FINAL:
                self.answers.append(answered(key, answer))
                return
            if "location" in answer.headers and self._chance.random() < 0.5:
                request = "GET", answer.headers["location"], None
            waited.wait(AGAIN_S)
        self.problems.append(f"{key} got no final answer")


def answered(key: str, answer: Answer) -> Answered:
    """Read a final answer: an order, a problem, or the outcome of a command."""
    body: dict[str, Any] = answer.body if isinstance(answer.body, dict) else {}
    if body.get("outcome") == "accepted":
        event = body["event"]
        body = {"order_id": event["order_id"], "version": event["version"], "status": STATUS_AFTER[event["type"]]}
    reason = str(body.get("problem", body.get("type", ""))).rpartition("/")[2] or None
    return Answered(key, answer.status, body.get("order_id"), body.get("version"), body.get("status"), reason)


class StreamReader(threading.Thread):
    """Reads the stream of all events, and resumes at any server where it broke off."""

    def __init__(self, ports: list[int], seed: int) -> None:
        super().__init__(name="stream", daemon=True)
        self.lives: list[list[Shown]] = []
        self.problems: list[str] = []
        self._ports = ports
        self._chance = random.Random(f"stream of {seed}")
        self._is_over = threading.Event()
        self._last_id = ""
        self._connection: HTTPConnection | None = None

    def run(self) -> None:
        """Read until it is over."""
        while not self._is_over.is_set():
            with suppress(OSError, HTTPException, ValueError):  # a closed file is a ValueError
                self._read()
            self._is_over.wait(AGAIN_S)

    def stop(self) -> None:
        """End it, also in the middle of a connection."""
        self._is_over.set()
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with suppress(OSError):  # it may just have been closed
                connection.sock.shutdown(socket.SHUT_RDWR)
        self.join(STREAM_SILENT_S + 5)

    def _read(self) -> None:
        connection = self._connection = HTTPConnection(
            "127.0.0.1", self._chance.choice(self._ports), timeout=STREAM_SILENT_S
        )
        try:
            connection.request("GET", "/v1/events", headers={"Last-Event-ID": self._last_id} if self._last_id else {})
            response = connection.getresponse()
            if response.status == 200:
                life: list[Shown] = []
                self.lives.append(life)
                for event_id, data in frames(response):
                    life += (
                        [Shown(data["partition"], data["offset"], data["order_id"], data["version"])] if data else []
                    )
                    self._last_id = event_id or self._last_id
            elif response.status < 500:
                self.problems.append(f"the stream answers {response.status} to the id {self._last_id}")
        finally:
            connection.close()


def frames(response: HTTPResponse) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield id and data of each frame that has come whole. Source: HTML standard, "Server-sent events"."""
    event_id, data = "", b""
    while line := response.readline():
        name, _, value = line.rstrip(b"\n").partition(b": ")
        if not line.strip():
            yield event_id, json.loads(data) if data else {}
            event_id, data = "", b""
        elif name == b"id":
            event_id = value.decode()
        elif name == b"data":
            data += value


class Outside:
    """The processes that readers ask, the readers and the callers; processes are started again when they end."""

    def __init__(self, service: Service, directory: Path, seed: int) -> None:
        self.ends: list[End] = []
        self._killed: set[int] = set()
        self._service = service
        self._notes = directory / "subscriber.txt"
        self._ports = [free_port() for _ in range(SERVERS)]
        self._starts: dict[str, Callable[[], WorkerProcess]] = {
            "projector": self._start_projector,
            "subscriber": self._start_subscriber,
            **{f"web-{port}": self._starter_of_web(port) for port in self._ports},
        }
        self._processes: dict[str, WorkerProcess] = {}
        self._until: dict[int, int] = {}
        self._stream = StreamReader(self._ports, seed)
        self._callers = [Caller(f"{number}", seed, self._ports) for number in range(CALLERS)]

    def start(self) -> None:
        """Start all, and return when each sees what comes from now on."""
        self._processes = {name: start() for name, start in self._starts.items()}
        for name, process in self._processes.items():
            if name != "subscriber":
                process.wait_ready()
        self._stream.start()
        until(lambda: self._stream.lives, "the stream is open")
        until(lambda: self._notes.exists() and self._notes.read_text(), "the subscriber has joined")
        for caller in self._callers:
            caller.start()

    def tend(self) -> None:
        """Start those again that have ended."""
        for name, process in self._processes.items():
            if (code := process.process.poll()) is not None:
                was_killed = code == -signal.SIGKILL and process.process.pid in self._killed
                self.ends.append(End(name, process.log_path.name, code, was_killed))
                self._processes[name] = self._starts[name]()

    def kill(self, kind: str, pick: float) -> None:
        """Kill a process whose name begins with a kind."""
        names = [name for name in self._processes if name.startswith(kind)]
        killed = self._processes[names[int(pick * len(names))]]
        self._killed.add(killed.process.pid)
        killed.send(signal.SIGKILL)

    def let_callers_end(self) -> None:
        """Stop the callers from beginning another request."""
        for caller in self._callers:
            caller.is_over.set()

    @property
    def is_calling(self) -> bool:
        """Whether a caller still waits for an answer."""
        return any(caller.is_alive() for caller in self._callers)

    def stop(self, ends: dict[int, int]) -> None:
        """End all readers and processes; they must have seen all events of each partition before its end."""
        self._until = ends
        self._stream.stop()
        for process in self._processes.values():
            process.end()

    @property
    def answers(self) -> list[Answered]:
        """The final answers to all requests."""
        return [answer for caller in self._callers for answer in caller.answers]

    @property
    def readers(self) -> list[Reader]:
        """What each reader was shown."""
        return [
            Reader("the stream", self._stream.lives, {}, may_repeat=False, until=self._until),
            Reader("the subscriber", self._lives(), {}, may_repeat=True, until=self._until),
        ]

    @property
    def problems(self) -> list[str]:
        """What went wrong that is no finding in the log."""
        return [*self._stream.problems, *(problem for caller in self._callers for problem in caller.problems)]

    def _lives(self) -> list[list[Shown]]:
        lives: list[list[Shown]] = []
        for line in self._notes.read_text().splitlines():
            if line == OPEN:
                lives.append([])
            else:
                partition, offset, order_id, version = line.split()
                lives[-1].append(Shown(int(partition), int(offset), order_id, int(version)))
        return lives

    def _start_projector(self) -> WorkerProcess:
        return self._service.start_worker(module=("order_service.cli", "projector"))

    def _start_subscriber(self) -> WorkerProcess:
        module = ("chaos.subscriber", f"{self._service.app_id}-subscriber", str(self._notes))
        return self._service.start_worker(module=module)

    def _starter_of_web(self, port: int) -> Callable[[], WorkerProcess]:
        def start() -> WorkerProcess:
            return self._service.start_worker(module=("order_service.cli", "web"), ORDERS_HTTP_PORT=str(port))

        return start
