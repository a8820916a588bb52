"""The caller of a request: a user, or a service with scopes."""

from enum import StrEnum
from typing import Final

from msgspec import Struct


class Scope(StrEnum):
    """The scopes that a token may grant to a service."""

    READ = "orders:read"
    PAY = "orders:pay"
    SHIP = "orders:ship"
    ADMIN = "orders:admin"


class Caller(Struct, frozen=True):
    """The sender of a request: a service if it has one of the scopes above, otherwise a user."""

    subject: str
    scopes: frozenset[Scope]

    @property
    def is_service(self) -> bool:
        """Whether this is a service: a user has no scope of this service."""
        return bool(self.scopes)

    @property
    def actor(self) -> str:
        """The caller as the `actor` of commands and events."""
        return f"{'service' if self.is_service else 'user'}:{self.subject}"

    def may(self, scope: Scope) -> bool:
        """Return whether the caller has this scope, or the admin scope, which includes all."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def sees(self, user_id: str) -> bool:
        """Return whether the caller may see orders of `user_id`: users their own, services with the read scope all."""
        return self.may(Scope.READ) if self.is_service else self.subject == user_id

    def sees_attempts_of(self, actor: str) -> bool:
        """Return whether the caller may see the refused commands of `actor`.

        Services see all. Users see their own and those of services, but not those of other users.
        """
        return self.is_service or actor == self.actor or not actor.startswith("user:")


LOCAL: Final = Caller("local", frozenset({Scope.ADMIN}))
"""Every caller while authentication is off."""
