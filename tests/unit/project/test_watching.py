"""How the benches measure growth: a slow answer of the broker is not taken for a pause of the worker."""

import pytest

from bench import watching
from bench.watching import growth_per_s


class Clock:
    """A clock that only sleeping and slow answers move."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class SlowFirstAnswer:
    """A topic that grows by 1,000 records per second, and whose end is told 3 s late at the first time."""

    def __init__(self, clock, goal):
        self.clock, self.goal = clock, goal
        self.is_first = True

    def sum(self):
        if self.is_first:
            self.clock.now += 3.0
            self.is_first = False
        return min(self.goal, round((self.clock.now - 100.0) * 1000))


def test_a_slow_first_answer_does_not_slow_the_growth(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(watching, "time", clock)
    assert growth_per_s(SlowFirstAnswer(clock, 10_000), 10_000) == pytest.approx(1000, rel=0.01)
