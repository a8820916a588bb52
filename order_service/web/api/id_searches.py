"""Searches the topics for an id, within limits: they are read from their beginning, which can take minutes."""

import asyncio
from typing import Final

from order_service.errors import TopicsError
from order_service.kafka.reader import Reader
from order_service.operations.verify.verify import Progress
from order_service.operations.why.id_search import MUST_BE, search_for
from order_service.operations.why.why import Why, why
from order_service.settings import Settings
from order_service.web.http.problems import Fault, Problem, Trouble

DEADLINE_S: Final = 20.0
RETRY_AFTER_S: Final = 5
NO_PROGRESS: Final = Progress(start=lambda _total: None, advance=lambda _count: None)


class IdSearches:
    """Searches for ids: one at a time in this process, and each at most `deadline_s` seconds."""

    def __init__(self, settings: Settings, deadline_s: float = DEADLINE_S) -> None:
        self._settings = settings
        self._deadline_s = deadline_s
        self._is_searching = asyncio.Lock()

    async def why(self, text: str, *, all_partitions: bool) -> Why:
        """Return what the topics know about an id. Raises Problem if that is nothing, or if the search cannot end."""
        search = search_for(text)
        if search is None:
            raise Problem(Trouble.INVALID_PARAMETER, errors=[Fault("/id", MUST_BE)])
        if self._is_searching.locked():
            raise _busy(Trouble.TOO_MANY_REQUESTS, "Another search of the topics is running on this server.")
        try:
            async with self._is_searching, asyncio.timeout(self._deadline_s), Reader(self._settings) as reader:
                answer = await why(reader, search, NO_PROGRESS, all_partitions=all_partitions)
        except TimeoutError:
            text = f"The search took longer than {self._deadline_s:.0f} s: use `order-service why`, which has no limit."
            raise Problem(Trouble.SERVICE_UNAVAILABLE, text) from None
        except TopicsError as error:
            raise _busy(Trouble.SERVICE_UNAVAILABLE, f"The topics cannot be searched: {error}.") from error
        if not answer.is_known and answer.damaged:
            raise Problem(Trouble.SERVICE_UNAVAILABLE, _unread(answer))
        if not answer.is_known:
            raise Problem(Trouble.NOT_FOUND, _nothing_known(answer))
        return answer


def _busy(kind: Trouble, detail: str) -> Problem:
    return Problem(kind, detail, headers={"Retry-After": str(RETRY_AFTER_S)})


def _unread(answer: Why) -> str:
    batches = ", ".join(
        f"{each.topic} partition {each.partition} from offset {each.offset} on" for each in answer.damaged
    )
    return f"Nothing was found, but not all records can be read: {batches}. Run `order-service verify`."


def _nothing_known(answer: Why) -> str:
    topics = ", ".join(topic.topic for topic in answer.searched)
    deleted = [
        f" Records of {topic.topic} before {topic.since.isoformat(timespec='seconds')} are deleted."
        for topic in answer.searched
        if topic.since is not None
    ]
    return f"Nothing is known about this id in any partition of {topics}.{''.join(deleted)}"
