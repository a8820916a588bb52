"""Databases for the views: a file of SQLite, or a PostgreSQL that comes from the package registry."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

import psycopg

DATABASES: Final = ("SQLite", "PostgreSQL")

Databases = Callable[[str], str]
"""Makes a database of one of these kinds, and gives its URL."""


@contextmanager
def databases(directory: Path) -> Iterator[Databases]:
    """Run a PostgreSQL with its default settings, and make databases in it, or files."""
    place = directory / f"databases-{uuid4().hex[:6]}"
    (place / "run").mkdir(parents=True, mode=0o700)
    os.environ.setdefault("XDG_RUNTIME_DIR", str(place / "run"))  # where pgserver keeps its lock
    from pgserver.postgres_server import get_server  # noqa: PLC0415 - it looks for that place when imported

    server = get_server(place / "postgresql", cleanup_mode="stop")

    def make(kind: str) -> str:
        name = f"db{uuid4().hex[:10]}"
        if kind == "SQLite":
            return f"sqlite:///{place}/{name}.db"
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return str(server.get_uri(name))

    try:
        yield make
    finally:
        server.cleanup()
