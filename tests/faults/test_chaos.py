"""The proof, as short as CI can have it: each kind of fault three times while 5,200 commands go through."""

from collections import Counter

import pytest

from tests.faults.checker import verdict_of
from tests.faults.plan import COMMIT_FAULTS, KINDS, Sizes, plan_faults
from tests.faults.run import Run

SIZES = Sizes(commands=5_200, rate=60, faults=3 * len(KINDS))


def test_the_same_seed_plans_the_same_faults_and_another_seed_others():
    plan = plan_faults(SIZES)
    assert plan == plan_faults(SIZES)
    assert plan != plan_faults(Sizes(seed=2, commands=5_200, rate=60, faults=24))
    assert sorted(fault.kind for fault in plan) == sorted(KINDS * 3)


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


@pytest.mark.timeout(420)
def test_whatever_is_killed_each_command_has_one_outcome(tmp_path):
    said: list[str] = []
    run = Run(SIZES, tmp_path, said.append)
    verdict = run.run()
    assert verdict.is_clean, [str(verdict), *said[-200:]]
    assert not run.problems
    assert min(run.happened[kind] for kind in KINDS) >= 3, run.happened
