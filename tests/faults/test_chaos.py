"""The proof, as short as CI can have it: each kind of fault three times while 5,200 commands go through."""

import pytest

from tests.faults.plan import KINDS, Sizes, plan_faults
from tests.faults.run import Run

SIZES = Sizes(commands=5_200, rate=60, faults=3 * len(KINDS))


def test_the_same_seed_plans_the_same_faults_and_another_seed_others():
    plan = plan_faults(SIZES)
    assert plan == plan_faults(SIZES)
    assert plan != plan_faults(Sizes(seed=2, commands=5_200, rate=60, faults=24))
    assert sorted(fault.kind for fault in plan) == sorted(KINDS * 3)


@pytest.mark.timeout(420)
def test_whatever_is_killed_each_command_has_one_outcome(tmp_path):
    said: list[str] = []
    run = Run(SIZES, tmp_path, said.append)
    verdict = run.run()
    assert verdict.is_clean, [str(verdict), *said[-200:]]
    assert verdict.commands == SIZES.commands
    assert not run.faults_of_ends()
    assert min(run.happened[kind] for kind in KINDS) >= 3, run.happened
