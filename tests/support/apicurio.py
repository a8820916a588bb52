"""A real schema registry that needs no Docker: Apicurio, fetched by Maven once, run by Java, in memory."""

import os
import signal
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

from order_service.local.broker import HOST, free_port
from order_service.local.kafka import cache_dir, find_program, made_once
from order_service.runtime.watcher import KILL_NOW, kill_group, watched
from tests.support.service import until

VERSION: Final = "3.0.9"  # newer ones need Java 21; compose runs the same
ARTIFACT: Final = f"io.apicurio:apicurio-registry-app:{VERSION}:tar.gz:all"
GOAL: Final = "org.apache.maven.plugins:maven-dependency-plugin:2.8:copy"  # newer ones miss a parent of it


class Apicurio:
    """A registry at a port of its own; `with` it, or start and kill it."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"http://{HOST}:{self.port}/apis/ccompat/v7"
        self._directory = directory
        self._options = options
        self._watcher: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it and return when it answers."""
        where = [f"-Dquarkus.http.host={HOST}", f"-Dquarkus.http.port={self.port}"]
        java = find_program("java") or "java"
        command = [java, "-Xmx256m", *where, *self._options, "-jar", str(_runner())]
        with (self._directory / "apicurio.log").open("ab") as log:
            self._watcher = subprocess.Popen(
                watched(command), stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
        until(self._answers, "the schema registry answers")
        return self

    def kill(self) -> None:
        """End it as a crash would."""
        if self._watcher is not None:
            self._watcher.communicate(KILL_NOW, timeout=10)
            kill_group(self._watcher.pid)
            self._watcher = None

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Keep it from answering while a block runs: it only takes connections."""
        assert self._watcher is not None
        os.killpg(self._watcher.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self._watcher.pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _answers(self) -> bool:
        assert self._watcher is not None
        assert self._watcher.poll() is None, f"it has ended: see apicurio.log in {self._directory}"
        try:
            with urllib.request.urlopen(f"{self.url}/subjects", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def _runner() -> Path:
    """Return the program, fetched once."""
    return next(made_once(cache_dir() / f"apicurio-{VERSION}", _fetch_into).glob("*-runner.jar"))


def _fetch_into(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as fetched:
        mvn = [find_program("mvn") or "mvn", "-q", "-B", GOAL, f"-Dartifact={ARTIFACT}"]
        subprocess.run(
            [*mvn, f"-DoutputDirectory={fetched}"], cwd=fetched, check=True, timeout=600, stdin=subprocess.DEVNULL
        )
        [archive] = Path(fetched).glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
