"""A database of a consumer's own, opened with nothing but its driver."""

import sqlite3

import psycopg


def connect(database):
    """Open a file of SQLite, or the URL of a PostgreSQL."""
    return sqlite3.connect(database) if database.endswith(".db") else psycopg.connect(database)
