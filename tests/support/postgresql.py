"""A PostgreSQL of any version, and running a command beside it.

`python -m tests.support.postgresql 17.6.0 pytest tests/unit/views` fetches the programs of that version with Maven. The
command finds them by POSTGRESQL_BIN, which may also name the folder of an installed one: /usr/lib/postgresql/17/bin.
"""

import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Final
from zipfile import ZipFile

POSTGRESQL_BIN: Final = "POSTGRESQL_BIN"
PLATFORMS: Final = {"x86_64": "linux-amd64", "aarch64": "linux-arm64v8"}
USER: Final = "postgres"
START_WITHIN_S: Final = 60


class PostgreSQL:
    """A server of the programs in a folder, with the methods of pgserver's that the tests use.

    It refuses to run as root, so then it runs under an account without rights.
    """

    def __init__(self, programs: Path, place: Path) -> None:
        """Start one on a socket in `place`, with its data in there."""
        self._programs, self._place, self._data = programs, place, place / "data"
        self._account = "nobody" if os.getuid() == 0 else None
        if self._account:
            shutil.chown(place, self._account)
        self._run("initdb", "--auth=trust", "--encoding=UTF8", f"--username={USER}", "--no-sync")
        self.ensure_postgres_running()

    def get_uri(self) -> str:
        """Return the URL of its database."""
        return f"postgresql://{USER}:@/{USER}?host={self._place}"

    def get_pid(self) -> int:
        """Return the id of its first process, which ends after all others."""
        return int((self._data / "postmaster.pid").read_text().split()[0])

    def ensure_postgres_running(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-c listen_addresses= -c unix_socket_directories={self._place}"
        self._run("pg_ctl", "-w", "-t", str(START_WITHIN_S), "-l", str(self._place / "log"), "-o", options, "start")

    def cleanup(self) -> None:
        """Stop it. Its clients are disconnected."""
        self._run("pg_ctl", "-w", "-m", "fast", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), "-D", str(self._data), *arguments]
        subprocess.run(command, cwd=self._place, user=self._account, check=True, stdout=subprocess.DEVNULL)


def fetch_programs(version: str, folder: Path) -> Path:
    """Fetch the programs of a version into a folder with Maven, and return their folder."""
    artifact = f"io.zonky.test.postgres:embedded-postgres-binaries-{PLATFORMS[platform.machine()]}:{version}"
    copy = ["dependency:copy", f"-Dartifact={artifact}", f"-DoutputDirectory={folder}"]
    subprocess.run(["mvn", "--batch-mode", "--quiet", *copy], cwd=folder, check=True, stdin=subprocess.DEVNULL)
    [jar] = folder.glob("*.jar")
    with ZipFile(jar) as files:
        [name] = [each for each in files.namelist() if each.endswith(".txz")]
        with tarfile.open(fileobj=BytesIO(files.read(name))) as archive:
            archive.extractall(folder / "postgresql", filter="data")
    return folder / "postgresql" / "bin"


def run_beside(version: str, command: list[str]) -> int:
    """Return the exit status of a command whose tests use this version of PostgreSQL."""
    with tempfile.TemporaryDirectory(prefix="orders-postgresql-") as directory:
        folder = Path(directory)
        folder.chmod(0o755)  # not only for us: see PostgreSQL
        programs = fetch_programs(version, folder)
        subprocess.run([programs / "postgres", "--version"], check=True)
        environment = os.environ | {POSTGRESQL_BIN: str(programs)}
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(run_beside(sys.argv[1], sys.argv[2:]))
