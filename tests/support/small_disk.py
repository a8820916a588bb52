"""A small disk that a test fills or makes read-only, and workers that see it: `python -m tests.support.small_disk PID`.

It is a tmpfs in a mount namespace (namespaces(7)), so only what runs there sees it. A shell holds the namespace, and
the disk with all that is on it, while workers come and go. Root needs nothing else; other users need a user namespace.
"""

import ctypes
import errno
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

from tests.support import worker

ROOT: Final = Path(__file__).parents[2]
CHUNK: Final = bytes(1024 * 1024)
FILL_EVERY_S: Final = 0.01
DONE: Final = "done\n"
NEEDED: Final = (
    "a small disk needs a mount namespace: run the tests as root, or allow user namespaces (sysctl"
    " user.max_user_namespaces, and kernel.apparmor_restrict_unprivileged_userns=0 where it exists)"
)


class SmallDisk:
    """A disk of `size_mb` at `path`. Workers that are started with its `module` see it there, others do not."""

    def __init__(self, path: Path, size_mb: int) -> None:
        self.path = path
        self._size_mb = size_mb

    def __enter__(self) -> Self:
        self.path.mkdir()
        namespaces = ["--mount"]
        if subprocess.run(["unshare", "--mount", "true"], stderr=subprocess.DEVNULL, check=False).returncode:
            namespaces += ["--user", "--map-root-user"]
        self._shell = subprocess.Popen(
            ["unshare", *namespaces, "sh"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )
        self._run("mount", "-t", "tmpfs", "-o", f"size={self._size_mb}m", "tmpfs", str(self.path))
        self.module = ("tests.support.small_disk", str(self._shell.pid))
        self._seen = Path(f"/proc/{self._shell.pid}/root") / self.path.relative_to("/")
        return self

    def __exit__(self, *_: object) -> None:
        self._shell.communicate()  # its input ends, and so does it

    @contextmanager
    def full(self) -> Iterator[None]:
        """Take all space while the block runs, also what others give up, as a program does that writes without end."""
        ballast, is_over = self._seen / "ballast", threading.Event()
        with ballast.open("wb", buffering=0) as file:
            _fill(file.fileno())

            def go_on() -> None:
                while not is_over.wait(FILL_EVERY_S):
                    _fill(file.fileno())

            filling = threading.Thread(target=go_on, daemon=True)
            filling.start()
            try:
                yield
            finally:
                is_over.set()
                filling.join()
                ballast.unlink()

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Make the disk read-only while the block runs. Files that a process has open for writing stay writable."""
        self._run("mount", "--bind", str(self.path), str(self.path))
        self._run("mount", "-o", "remount,bind,ro", str(self.path))
        try:
            yield
        finally:
            self._run("umount", "--lazy", str(self.path))  # a worker may just have a file of it open

    def _run(self, *command: str) -> None:
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        with suppress(BrokenPipeError):  # it has ended, and its last line says why
            self._shell.stdin.write(f"{shlex.join(command)} && echo {DONE}")
        answer = self._shell.stdout.readline()
        assert answer == DONE, f"{NEEDED}. {shlex.join(command)}: {answer.strip()}"


def _fill(descriptor: int) -> None:
    """Write until there is no space left."""
    try:
        while True:
            os.write(descriptor, CHUNK)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def enter(holder: str) -> None:
    """Enter the namespaces of a process: first that of its users, from which the right to enter the other comes."""
    libc = ctypes.CDLL(None, use_errno=True)
    for kind in ("user", "mnt"):
        own, wanted = Path(f"/proc/self/ns/{kind}"), Path(f"/proc/{holder}/ns/{kind}")
        if own.samefile(wanted):
            continue
        with wanted.open() as namespace:
            if libc.setns(namespace.fileno(), 0):
                raise OSError(ctypes.get_errno(), f"setns to {wanted}")
    os.chdir(ROOT)  # it was left


if __name__ == "__main__":
    enter(sys.argv.pop(1))
    worker.main()
