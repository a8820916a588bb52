"""The profile of a turn: to which part of the work a sampled stack belongs."""

import pytest

from bench.turn import OTHER, part_of, shares

LOOP = "main (bench/turn_worker.py:74);run_forever (asyncio/base_events.py:608);_run_once (asyncio/base_events.py:1936)"
TASK = f"{LOOP};_run (asyncio/events.py:84)"
DECIDE = "run (order_service/worker/turn.py:190);_decide (order_service/worker/turn.py:260)"
WRITE = "_commit (order_service/worker/turn.py:330);_write (order_service/worker/turn.py:350)"


@pytest.mark.parametrize(
    ("stack", "part"),
    [
        pytest.param(f"{TASK};{DECIDE};encode (order_service/wire/avro.py:9)", "decide, with the table and Avro"),
        pytest.param(f"{TASK};{WRITE};send (aiokafka/producer/producer.py:1)", "write a turn: records, producer"),
        pytest.param(f"{TASK};_proc_fetch_request (aiokafka/consumer/fetcher.py:1)", "fetch"),
        pytest.param(f"{TASK};_read (aiokafka/conn.py:1);read (asyncio/streams.py:1)", "requests and connections"),
        pytest.param(f"{TASK};_run_agent (faust/agents/agent.py:1)", "Faust, agent and inbox"),
        pytest.param(f"{LOOP};select (selectors.py:468)", "asyncio"),
        pytest.param(TASK, "asyncio"),
        pytest.param("_bootstrap (threading.py:1);emit (logging/__init__.py:1)", OTHER),
    ],
)
def test_the_part_of_a_stack(stack, part):
    assert part_of(stack) == part


def test_shares_are_percentages_of_all_samples():
    found = shares(f"{TASK};{DECIDE} 3\n{LOOP};select (selectors.py:468) 1\n")
    assert (found["decide, with the table and Avro"], found["asyncio"], sum(found.values())) == (75.0, 25.0, 100.0)
    assert shares("") == {}
