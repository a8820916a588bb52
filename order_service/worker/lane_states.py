"""The state of each lane of a worker, as its admin port shows it to `order-service lanes`."""

from datetime import datetime
from typing import Literal

from msgspec import Struct


class LaneState(Struct, frozen=True):
    """The state of one lane. `since` and `reason` say when and why it was parked, or why it waits."""

    partition: int
    state: Literal["running", "claiming", "parked"]
    since: datetime | None = None
    reason: str = ""


class LaneStates(Struct, frozen=True):
    """The response of `GET /lanes`."""

    lanes: list[LaneState]
