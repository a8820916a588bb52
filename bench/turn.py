"""The timeline of a turn, its requests and its processor time, and which code holds Python's lock meanwhile."""

import re
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Final

from bench.latency import WARM_S, paced, under_way
from bench.load import Pace, Shop
from bench.sizes import scaled_s
from bench.table import Row
from bench.watching import WrongResult
from bench.world import World
from tests.support.service import Service, WorkerProcess

RATES: Final = (500, 3_000)
MEASURED_S: Final = scaled_s(20.0)
STEPS: Final = {
    "turn.decided": "decide",
    "turn.begun": "wait for the commit before it",
    "turn.produced": "AddPartitionsToTxn and Produce, until all is acknowledged",
    "turn.committed": "EndTxn",
}
REQUESTS: Final = ("AddPartitionsToTxn", "Produce", "EndTxn")
PARTS: Final = (
    ("decide, with the table and Avro", ("_decide (order_service/worker/turn.py", "order_service/worker/lane.py")),
    ("write a turn: records, producer", ("order_service/worker/t", "aiokafka/producer/")),
    ("fetch", ("aiokafka/consumer/", "order_service/worker/faust/consumer.py")),
    ("requests and connections", ("aiokafka/",)),
    ("Faust, agent and inbox", ("faust/", "mode/", "order_service/")),
    ("asyncio", ("asyncio/", "selectors.py")),
)
"""The parts of the work, each with texts one of which is in a frame of its stack. The first part that fits counts."""
OTHER: Final = "the rest"
_TASK: Final = "_run (asyncio/events.py"
"""The frame from which on a stack is that of a task or a callback."""

HOW: Final = f"""\
One worker with default settings, 4 partitions, JSON commands of orders in all steps of their lives, {MEASURED_S:g} s \
that do not count, then {MEASURED_S:g} s. Steps are timed in the event loop, between the failpoints of a turn; \
requests from their call to their response, with aiokafka's pause after a refused one. Processor time is that of the \
thread of the event loop, and of the others: the consumer's, the log's, the admin port's. Then, for as long again, \
`py-spy record --gil` takes 100 samples a second of the thread that holds Python's lock: shares of all its samples."""


def measure(world: World) -> list[Row]:
    """Take each figure once per rate."""
    rows: list[Row] = []
    for rate in RATES:
        with world.service() as service:
            worker = service.start_worker(module=("bench.turn_worker",)).wait_lanes(service.partitions)
            paced(service, Shop(f"warm-{rate}"), rate, MEASURED_S)
            rows += _at(world, service, worker, rate)
    return rows


def _at(world: World, service: Service, worker: WorkerProcess, rate: int) -> list[Row]:
    samples = world.directory / f"gil-{rate}"
    seconds = WARM_S + 2 * MEASURED_S + WARM_S
    pace = Pace(service.bootstrap_servers, service.names.commands, Shop(f"turn-{rate}"), rate, seconds)
    with under_way(service, pace) as all_seen:
        time.sleep(WARM_S)
        before = figures(worker)
        time.sleep(MEASURED_S)
        after = figures(worker)
        record(worker.process.pid, samples)
        all_seen()
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}
    turns = grown.get("bench_turns_total", 0.0)
    if not turns:
        raise WrongResult("no turn was committed")
    world.say(f"turn: {rate}/s: {turns / MEASURED_S:.0f} turns/s")
    loop_s, all_s = grown["bench_loop_cpu_seconds"], grown["bench_all_cpu_seconds"]
    at = f"{rate:,}/s"
    return [
        Row(f"{at}: turns", "/s", [turns / MEASURED_S]),
        *(
            Row(f"{at}: {name}", "ms", [grown[f'bench_step_seconds_total{{step="{step}"}}'] / turns * 1000])
            for step, name in STEPS.items()
        ),
        *(row for name in REQUESTS for row in _request_rows(at, name, grown, turns)),
        Row(f"{at}: processor time of a turn, event loop", "ms", [loop_s / turns * 1000]),
        Row(f"{at}: processor time of a turn, other threads", "ms", [(all_s - loop_s) / turns * 1000]),
        *(Row(f"{at}: lock, {part}", "%", [share]) for part, share in shares(samples.read_text()).items()),
    ]


def _request_rows(at: str, name: str, grown: dict[str, float], turns: float) -> list[Row]:
    count = grown[f'bench_requests_total{{request="{name}"}}']
    seconds = grown[f'bench_request_seconds_total{{request="{name}"}}']
    return [
        Row(f"{at}: {name} requests of a turn", "", [count / turns]),
        Row(f"{at}: {name}, each", "ms", [seconds / count * 1000]),
    ]


def figures(worker: WorkerProcess) -> dict[str, float]:
    """Return what a worker has measured since its start."""
    _, text = worker.admin("/metrics", within_s=60.0)
    return {name: float(value) for name, value in re.findall(r"^(bench_\S+) (\S+)$", text, re.MULTILINE)}


def record(pid: int, samples: Path) -> None:
    """Sample the stacks that hold Python's lock. The system must allow this user to trace the process."""
    options = ["--gil", "--duration", f"{MEASURED_S:.0f}", "--format", "raw", "--output", str(samples)]
    result = subprocess.run(
        ["py-spy", "record", "--pid", str(pid), *options], check=False, capture_output=True, text=True
    )
    if result.returncode:
        raise WrongResult(f"py-spy ended with {result.returncode}: {result.stderr.strip()}")


def shares(samples: str) -> dict[str, float]:
    """Return the percentage of samples of each part of the work. A line has a stack, from its root on, and a count."""
    counts: Counter[str] = Counter()
    for line in samples.splitlines():
        stack, _, count = line.rpartition(" ")
        counts[part_of(stack)] += int(count)
    total = counts.total()
    return {name: 100 * counts[name] / total for name in (*(name for name, _ in PARTS), OTHER)} if total else {}


def part_of(stack: str) -> str:
    """Return the part of the work to which a stack belongs. What is around the event loop is in every stack."""
    frames = stack.split(";")
    tasks = [number for number, frame in enumerate(frames) if _TASK in frame]
    work = frames[tasks[-1] + 1 :] if tasks else frames[-1:]
    for name, texts in PARTS:
        if any(text in frame for frame in work for text in texts):
            return name
    return "asyncio" if tasks else OTHER
