"""Compares the topics again while a worker runs: a weakened configuration is reported before data is lost."""

import asyncio

import structlog

from order_service.errors import KafkaAwayError
from order_service.kafka.connection import ask_admin
from order_service.kafka.topics import FIX_HINT, compare_topics
from order_service.runtime.readiness import NotReady, ReadinessFault
from order_service.settings import Settings
from order_service.worker import metrics

log = structlog.get_logger()

LOOK_EVERY_S = 300.0
"""How often the topics are compared. Tests make it shorter."""


class TopicWatch:
    """A periodic comparison of the topics. `faults` is for readiness: the process continues, since nothing is lost yet.

    It updates `in_sync`, which has `min.insync.replicas` of each topic.
    """

    def __init__(self, settings: Settings, in_sync: dict[str, int]) -> None:
        self.faults: list[ReadinessFault] = []
        self._risks: list[str] | None = None
        self._in_sync = in_sync
        self._settings = settings
        self._is_comparing = True

    async def run(self) -> None:
        """Compare until cancelled; the start of the worker has already compared once."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.compare()

    async def compare(self) -> None:
        """Compare once. A comparison that fails keeps the last result; only the first of several failures is logged."""
        settings = self._settings
        try:
            compared = await ask_admin(settings, lambda admin: compare_topics(admin, settings), patience_s=0.0)
        except KafkaAwayError as error:
            if self._is_comparing:
                log.warning("The topics could not be compared.", why=str(error))
            self._is_comparing = False
            return
        self._is_comparing = True
        self._in_sync.update(compared.in_sync)
        faults = [NotReady.TOPIC_WEAKENED.fault(fault=fault.text) for fault in compared.faults]
        for text, fault in zip(faults, compared.faults, strict=True):
            if text not in self.faults:
                log.error("A topic is below its required configuration.", fault=fault.text, cure=FIX_HINT)
        if self.faults and not faults:
            log.info("All topics meet their required configuration again.")
        risks = [risk.text for risk in compared.risks]
        for risk in risks:
            if self._risks is not None and risk not in self._risks:  # the start of the worker has logged the first ones
                log.warning("The settings of the topics are a risk.", risk=risk)
        self.faults, self._risks = faults, risks
        metrics.TOPIC_FAULTS.set(len(faults))
