"""A worker that also measures the steps of its turns: `python -m bench.turn_worker`."""

import time
from typing import Any, Final

from aiokafka.producer.sender import AddPartitionsToTxnHandler, EndTxnHandler, SendProduceReqHandler
from prometheus_client import Counter, Gauge

from order_service.runtime import logs
from order_service.runtime.signals import exit_on_signal
from order_service.settings import Settings
from order_service.worker.faust.app import run

TURNS: Final = Counter("bench_turns", "Committed turns.")
STEP_SECONDS: Final = Counter("bench_step_seconds", "Seconds of each step of the turns.", ["step"])
REQUESTS: Final = Counter("bench_requests", "Requests of the turns.", ["request"])
REQUEST_SECONDS: Final = Counter(
    "bench_request_seconds", "Seconds of these requests, with the pause after a refused one.", ["request"]
)
LOOP_CPU: Final = Gauge("bench_loop_cpu_seconds", "Processor time of the thread of the event loop.")
ALL_CPU: Final = Gauge("bench_all_cpu_seconds", "Processor time of all threads.")
HANDLERS: Final = {
    "AddPartitionsToTxn": AddPartitionsToTxnHandler,
    "Produce": SendProduceReqHandler,
    "EndTxn": EndTxnHandler,
}
BEFORE: Final = {
    "turn.decided": "turn.taken",
    "turn.begun": "turn.decided",
    "turn.produced": "turn.begun",
    "turn.committed": "turn.produced",
}
"""The step before each step. A turn is decided while the one before is written, but each step ends before its next."""


class Steps:
    """Sums the seconds of each step. The failpoint is called in the event loop, after the step."""

    def __init__(self) -> None:
        self._ended_at: dict[str, float] = {}

    def __call__(self, step: str) -> None:
        """Add what has passed since the step before."""
        now = self._ended_at[step] = time.perf_counter()
        if step in BEFORE and BEFORE[step] in self._ended_at:
            STEP_SECONDS.labels(step).inc(now - self._ended_at[BEFORE[step]])
        if step == "turn.committed":
            TURNS.inc()
            LOOP_CPU.set(time.thread_time())
            ALL_CPU.set(time.process_time())


def measure_requests() -> None:
    """Count and time the requests of all producers from here on."""
    for name, handler in HANDLERS.items():
        handler.do = _timed(name, handler.do)


def _timed(name: str, do: Any) -> Any:
    async def timed(handler: Any, node_id: Any) -> Any:
        began_at = time.perf_counter()
        try:
            return await do(handler, node_id)
        finally:
            REQUESTS.labels(name).inc()
            REQUEST_SECONDS.labels(name).inc(time.perf_counter() - began_at)

    return timed


if __name__ == "__main__":
    exit_on_signal()
    logs.configure("json")
    measure_requests()
    run(Settings(), failpoint=Steps())
