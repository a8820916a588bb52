"""The databases of the views."""

from tests.support.databases import engine, postgresql, postgresql_server, projection, url, views

__all__ = ["engine", "postgresql", "postgresql_server", "projection", "url", "views"]
