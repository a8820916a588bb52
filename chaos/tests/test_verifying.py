"""What a run makes of the findings of `order-service verify`."""

import sys

import msgspec
import pytest

from chaos.plan import Sizes
from chaos.verdict import verifying
from chaos.verdict.judging import Kept
from chaos.verdict.verifying import problems_of_verify

SIZES = Sizes(old=20_000)
OLD = {
    "kind": "table",
    "topic": "orders.table.v1",
    "partition": 0,
    "offset": 3,
    "text": "9 orders of the table have no event",
}
CHAIN = {"kind": "chain", "topic": "orders.events.v1", "partition": 2, "offset": 7, "text": "Version 2 differs."}


def problems(monkeypatch, findings, *, cut=None, sizes=SIZES, code=1):
    report = msgspec.json.encode({"findings": findings}).decode()
    program = f"import sys; print({report!r}); sys.stderr.write('Kafka is away'); sys.exit({code})"
    monkeypatch.setattr(verifying, "COMMAND", [sys.executable, "-c", program])
    return list(problems_of_verify({}, Kept(sizes, {}, cut=cut)))


def test_a_finding_is_a_problem(monkeypatch):
    assert problems(monkeypatch, [CHAIN]) == ["verify: chain orders.events.v1-2 offset 7: Version 2 differs."]


def test_no_finding_is_no_problem(monkeypatch):
    assert problems(monkeypatch, [], code=0) == []


@pytest.mark.parametrize(("cut", "count"), [(2, 0), (1, 1)])
def test_the_partition_whose_table_was_cut_is_explained(monkeypatch, cut, count):
    assert len(problems(monkeypatch, [CHAIN], cut=cut)) == count


@pytest.mark.parametrize(("sizes", "count"), [(SIZES, 0), (msgspec.structs.replace(SIZES, kinds=("kill",)), 1)])
def test_the_older_orders_that_a_run_has_put_into_its_tables_are_explained(monkeypatch, sizes, count):
    assert len(problems(monkeypatch, [OLD], sizes=sizes)) == count


def test_a_verify_that_could_not_read_is_a_problem(monkeypatch):
    assert problems(monkeypatch, [], code=4) == ["verify ended with 4: Kafka is away"]
