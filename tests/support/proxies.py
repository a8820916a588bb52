"""Real proxies: PgBouncer before a PostgreSQL, and nginx before an HTTP server."""

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from sqlalchemy import URL

from order_service.local.broker import free_port
from tests.support.service import ROOT, until

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"  # Debian has servers there
GUIDE = ROOT / "docs" / "guide" / "behind-a-proxy.md"
USER, PASSWORD = "postgres", "seven-secret"


def find_program(name: str) -> str:
    found = shutil.which(name, path=PATH)
    if found is None:
        pytest.fail(f"no {name}: install it (`make proxies`; on Debian `apt-get install {name}`)", pytrace=False)
    return found


@contextmanager
def running_pgbouncer(server: URL, certificate: tuple[Path, Path] | None = None) -> Iterator[URL]:
    """Run one with its defaults and `pool_mode = transaction`; return the URL of the same database behind it.

    With a certificate and its key, it serves TLS only. PgBouncer refuses to run as root, so it runs as the owner of the
    server's socket.
    """
    port, socket_folder = free_port(), Path(str(server.query["host"]))
    owner = next(socket_folder.glob(".s.PGSQL.*")).stat().st_uid
    with TemporaryDirectory(prefix="orders-pgbouncer-") as place:
        folder = Path(place)
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": port,
            "unix_socket_dir": "",
            "auth_file": folder / "users.txt",
            "pool_mode": "transaction",
        }
        if certificate is not None:
            files = [shutil.copy(file, folder) for file in certificate]
            settings |= {"client_tls_sslmode": "require", "client_tls_cert_file": files[0]}
            settings |= {"client_tls_key_file": files[1]}
        (folder / "users.txt").write_text(f'"{USER}" "{PASSWORD}"\n')
        lines = [f"{name} = {value}" for name, value in settings.items()]
        (folder / "pgbouncer.ini").write_text(
            "\n".join(["[databases]", f"* = host={socket_folder} user={USER}", "[pgbouncer]", *lines, ""])
        )
        as_owner = []
        if os.getuid() == 0:
            as_owner = ["-u", pwd.getpwuid(owner).pw_name]
            for path in (folder, *folder.iterdir()):
                os.chown(path, owner, -1)
        with _running([find_program("pgbouncer"), *as_owner, str(folder / "pgbouncer.ini")], folder, port):
            yield URL.create(
                "postgresql+psycopg", USER, PASSWORD, host="127.0.0.1", port=port, database=server.database
            )


def nginx_of_the_guide(changes: Mapping[str, str]) -> str:
    """Return the nginx configuration of the guide, in which each of these texts appears once and is replaced."""
    text = GUIDE.read_text(encoding="utf-8").split("```nginx\n")[1].split("```")[0]
    for shown, used in changes.items():
        assert text.count(shown) == 1, f"{shown} appears once in {GUIDE}"
        text = text.replace(shown, used)
    return text


@contextmanager
def running_nginx(configuration: str, port: int) -> Iterator[None]:
    """Run one with this content of its `http` block, until it listens on `port`."""
    with TemporaryDirectory(prefix="orders-nginx-") as place:
        folder = Path(place)
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = [f"{kind}_temp_path {folder}/{kind};" for kind in kinds]
        top = ["daemon off;", f"pid {folder}/pid;", f"error_log {folder}/error.log;", "events {}"]
        if os.getuid() == 0:
            top.append("user root;")
        content = [*top, "http {", "access_log off;", *temporary, configuration, "}", ""]
        (folder / "nginx.conf").write_text("\n".join(content))
        command = [
            find_program("nginx"),
            "-p",
            place,
            "-c",
            str(folder / "nginx.conf"),
            "-e",
            str(folder / "error.log"),
        ]
        with _running(command, folder, port):
            yield


@contextmanager
def _running(command: list[str], folder: Path, port: int) -> Iterator[None]:
    output = folder / "output"
    with output.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            until(lambda: process.poll() is not None or _listens(port), f"{command[0]} listens", within_s=20)
            assert process.poll() is None, output.read_text() + "".join(map(Path.read_text, folder.glob("*.log")))
            yield
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:  # a newer PgBouncer waits for its clients
                process.kill()


def _listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0
