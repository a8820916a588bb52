"""Starts our processes by a fork of one that has imported what they need: each saves most of a second of CPU time.

Only while pytest runs, and on Linux: elsewhere, as in `make proof`, each is an interpreter of its own. The ends talk
in packets over Unix sockets: a request with the output and one end of a pair of sockets as descriptors; over that pair
come back the process, by its id and a descriptor of it, and later the exit code. When pytest ends, however it does,
the process that forks ends too, and the kernel kills what it has forked.
"""

import ctypes
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final

ROOT: Final = Path(__file__).parents[2]
IS_POSSIBLE: Final = sys.platform == "linux"
REQUEST_MAX: Final = 65_536
START_WITHIN_S: Final = 60.0
OPEN_FILES_MAX: Final = 4_096
PR_SET_PDEATHSIG: Final = 1
"""Source: Linux, prctl(2)."""
NUMBER: Final = 8
"""Bytes of a process id or an exit code."""


class Forked:
    """A process that was forked: what tests use of `subprocess.Popen`."""

    def __init__(self, answers: socket.socket) -> None:
        self._answers = answers
        answers.settimeout(START_WITHIN_S)
        packet, descriptors, _, _ = socket.recv_fds(answers, NUMBER, 1)
        self.pid = _number(packet)
        [self._process] = descriptors
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, minus the signal that killed it; None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, and return the exit code; subprocess.TimeoutExpired if it does not come in time."""
        if self.returncode is None:
            self._answers.settimeout(timeout)
            try:
                self.returncode = _number(self._answers.recv(NUMBER))
            except (TimeoutError, BlockingIOError) as error:
                raise subprocess.TimeoutExpired(["forked"], timeout or 0) from error
            self._answers.close()
            os.close(self._process)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has just ended
                signal.pidfd_send_signal(self._process, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)


class Template:
    """The process that forks; started with the first request."""

    def __init__(self) -> None:
        self._requests: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], output: IO[bytes]) -> Forked:
        """Run a module with arguments, as `python -m` does in the directory of the project."""
        if self._requests is None:
            self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                command = [sys.executable, "-m", __name__, str(theirs.fileno())]
                self._process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()])
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            request = json.dumps({"arguments": list(arguments), "environment": dict(environment)}).encode()
            socket.send_fds(self._requests, [request], [theirs.fileno(), output.fileno()])
        return Forked(ours)

    def stop(self) -> None:
        """End it, and what it has forked."""
        if self._requests is not None and self._process is not None:
            self._requests.close()
            self._process.wait(10)


template: Template | None = None
"""What forks in this process; None where each is to be an interpreter of its own."""


def _number(packet: bytes) -> int:
    if not packet:
        raise RuntimeError("the process that forks has ended")
    return int.from_bytes(packet, "big", signed=True)


def _serve(requests: socket.socket) -> dict[str, Any]:
    """Fork for each request until the other end closes. Returns in each new process, with what it is to run."""
    with selectors.DefaultSelector() as waiting:
        waiting.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select():
                if key.fileobj is not requests:
                    waiting.unregister(key.fileobj)
                    _tell_end(*key.data)
                    continue
                packet, descriptors, _, _ = socket.recv_fds(requests, REQUEST_MAX, 2)
                if not packet:
                    raise SystemExit(0)
                answers, output = socket.socket(fileno=descriptors[0]), descriptors[1]
                child = os.fork()
                if child == 0:
                    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                    os.dup2(output, 1)
                    os.dup2(output, 2)
                    answers.detach()
                    requests.detach()
                    return dict(json.loads(packet))
                os.close(output)
                watched = os.pidfd_open(child)
                waiting.register(watched, selectors.EVENT_READ, (child, watched, answers))
                _tell(answers, child, watched)


def _tell_end(child: int, watched: int, answers: socket.socket) -> None:
    _, status = os.waitpid(child, 0)
    os.close(watched)
    with answers:
        _tell(answers, os.waitstatus_to_exitcode(status))


def _tell(answers: socket.socket, number: int, *descriptors: int) -> None:
    with suppress(BrokenPipeError):  # the test that has started it waits for no answer any more
        socket.send_fds(answers, [number.to_bytes(NUMBER, "big", signed=True)], descriptors)


def main() -> None:
    """Import what our processes need, then fork."""
    import order_service.cli.running  # noqa: PLC0415
    import order_service.views.process  # noqa: PLC0415
    import order_service.web.process  # noqa: PLC0415
    import order_service.worker.faust.app  # noqa: F401, PLC0415

    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest
    request = _serve(socket.socket(fileno=int(sys.argv[1])))
    os.closerange(3, OPEN_FILES_MAX)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.unfreeze()
    os.environ.clear()
    os.environ.update(request["environment"])
    module, *sys.argv[1:] = request["arguments"]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
