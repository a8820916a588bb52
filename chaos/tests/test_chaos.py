"""The proof, as short as CI can have it: each kind of fault while 5,200 commands go through."""

import time
from collections import Counter
from concurrent.futures import Future

import pytest
from msgspec import structs

from chaos.cluster import Cluster
from chaos.plan import (
    COMMIT_FAULTS,
    KINDS,
    LAST,
    OF_THREE,
    ON_DISK,
    ONCE,
    REPEATED,
    STANDING,
    TIMES_AGAIN,
    WORKER_FAULTS,
    Fault,
    Sizes,
    plan_faults,
    planned_again,
)
from chaos.run import Run, is_static
from chaos.tests.short_run import SIZES
from chaos.verdict.checker import verdict_of


def test_the_same_seed_plans_the_same_faults_and_another_seed_others():
    plan = plan_faults(SIZES)
    assert plan == plan_faults(SIZES)
    assert plan != plan_faults(structs.replace(SIZES, seed=2))
    assert sorted(fault.kind for fault in plan) == sorted((*REPEATED, *REPEATED, *ONCE))
    assert {*REPEATED, *OF_THREE, *ON_DISK, *ONCE, *STANDING, *LAST} == set(KINDS)


@pytest.mark.parametrize("seed", range(20))
def test_what_takes_long_comes_in_the_first_half(seed):
    plan = plan_faults(structs.replace(SIZES, seed=seed))
    assert max(place for place, fault in enumerate(plan) if fault.kind in ONCE) <= len(plan) / 2 + len(ONCE)


def test_a_partition_is_taken_away_only_of_three_brokers():
    kinds = ("broker", "partition-away")
    assert {fault.kind for fault in plan_faults(Sizes(faults=4, kinds=kinds))} == {"broker"}
    assert {fault.kind for fault in plan_faults(Sizes(faults=4, kinds=kinds, brokers=3))} == set(kinds)


def test_tables_are_damaged_only_where_they_are_on_disk():
    kinds = ("kill", "damaged-table")
    assert {fault.kind for fault in plan_faults(Sizes(faults=4, kinds=kinds))} == {"kill"}
    on_disk = Sizes.of({"FAULTS": "4", "KINDS": " ".join(kinds), "ORDERS_TABLE": "rocksdb"})
    assert {fault.kind for fault in plan_faults(on_disk)} == set(kinds)


def test_kinds_that_are_not_asked_for_are_not_planned():
    assert {fault.kind for fault in plan_faults(Sizes(faults=5, kinds=("static", "long-pause", "kill")))} == {
        "long-pause",
        "kill",
    }
    assert plan_faults(Sizes(faults=5, kinds=("static",))) == []


@pytest.mark.parametrize(
    ("faults", "kinds", "bound_s"),
    [
        pytest.param(0, KINDS, 3.0, id="no faults"),
        pytest.param(5, ("users", "compaction", "foreign-transaction"), 3.0, id="nothing moves"),
        pytest.param(5, ("kill",), 11.0, id="a rebalance, and a session that must end"),
        pytest.param(5, ("kill", "large-table"), 11.8, id="a table to restore"),
        pytest.param(5, KINDS, 15.8, id="workers end one after the other"),
    ],
)
def test_how_long_a_partition_may_be_silent_depends_on_the_kinds_of_the_run(faults, kinds, bound_s):
    assert Sizes(faults=faults, kinds=kinds).silence_max_s == bound_s


@pytest.mark.parametrize(("seed", "places"), [(1, {1, 3}), (2, {1, 2, 3, 4})])
def test_an_even_seed_makes_all_members_static_and_an_odd_seed_every_other_one(seed, places):
    assert {n for n in range(1, 5) if is_static(Sizes(seed=seed), n)} == places
    assert not is_static(Sizes(seed=seed, kinds=("kill",)), 1)


def test_every_other_network_fault_hits_the_end_of_a_transaction():
    plan = plan_faults(Sizes(faults=8, kinds=("network",)))
    assert [fault.detail.endswith("END_TXN") for fault in plan] == [True, False] * 4
    assert {fault.detail for fault in plan[::2]} == set(COMMIT_FAULTS)


def test_a_run_that_does_less_than_was_planned_says_so(tmp_path):
    run = Run(Sizes(commands=10, faults=2, kinds=("kill", "users")), tmp_path, print)
    run.happened = Counter(kill=1, users=0)
    run.ends = Counter({0: 3, -9: 1, 1: 2})
    assert list(run.shortfalls(verdict_of([], faults=1, seed=1))) == [
        "0 commands were checked, not 10",
        "no fault of the kind users has happened",
        "2 workers ended with 1, which no fault explains",
    ]


def test_the_only_broker_is_not_ended_while_it_is_away(tmp_path):
    run = Run(Sizes(faults=2, kinds=("broker",)), tmp_path, print)
    run._start = 0.0
    run._cluster = Cluster(tmp_path / "kafka")
    run._befall(Fault(at_s=0.0, kind="broker", detail="kill", pick=0.0))
    assert (len(run._later), run.happened["broker"]) == (1, 0)


COMPACTION = Fault(at_s=5.0, kind="compaction", detail="", pick=0.5)


def test_a_fault_that_failed_to_happen_is_planned_again_a_few_times():
    later = [COMPACTION]
    while (again := planned_again(later[-1], later[-1].at_s + 3.0)) is not None:
        later.append(again)
    assert [fault.at_s for fault in later] == [5.0 + 3.0 * n for n in range(TIMES_AGAIN + 1)]
    assert all(structs.replace(fault, at_s=5.0, times_again=TIMES_AGAIN) == COMPACTION for fault in later)


@pytest.mark.parametrize(("times_again", "planned"), [(1, 1), (0, 0)])
def test_a_fault_that_finds_the_broker_away_is_planned_again(tmp_path, times_again, planned):
    run = Run(Sizes(faults=2, kinds=("compaction",)), tmp_path, print)
    run._start = time.monotonic()
    failed: Future[int] = Future()
    failed.set_exception(TimeoutError("no broker answers"))
    run._aside = [(structs.replace(COMPACTION, times_again=times_again), failed)]
    run._note_what_is_over()
    assert (len(run._later), run.happened["compaction"], run._aside) == (planned, 0, [])


@pytest.mark.timeout(600)
def test_whatever_is_killed_each_command_has_one_outcome(tmp_path):
    run = Run(SIZES, tmp_path, print)  # pytest shows it if the test fails
    verdict = run.run()
    assert verdict.is_clean, str(verdict)
    assert not run.problems
    assert verdict.silence_s > 0
    kinds = [kind for kind in KINDS if kind not in {*OF_THREE, *ON_DISK}]
    assert all(run.happened[kind] >= (2 if kind in WORKER_FAULTS else 1) for kind in kinds), run.happened
