"""The clock of a worker without a broker: steps of the wall clock, a clock that is far off, a broker's that is."""

import pytest
from aiokafka import TopicPartition
from aiokafka.structs import RecordMetadata

from order_service.errors import ClockError
from order_service.worker.clock import Clock

START_S = 1_800_000_000.0
HOUR_S = 3600.0
FAR_S = 60.0


class Time:
    """Wall, monotonic and Kafka's time; all go on together, and a test lets one of them step."""

    def __init__(self, **kafka_ahead_s):
        self.wall_s, self.steady_s = START_S, 100.0
        self.kafka_ahead_s = kafka_ahead_s or {"0": 0.0}
        self.clock = Clock(FAR_S, wall=lambda: self.wall_s, steady=lambda: self.steady_s)

    def passes(self, seconds, *, by_wall=None):
        self.steady_s += seconds
        self.wall_s += seconds if by_wall is None else by_wall

    def true_s(self):
        return START_S + self.steady_s - 100.0

    def ahead_s(self):
        """Return how far the clock is ahead of the true time."""
        return self.clock.now().timestamp() - self.true_s()

    def write(self, *, timestamp_type=1):
        """Write a record to each partition, stamped by its broker."""
        self.clock.compare(
            RecordMetadata(
                "t", int(p), TopicPartition("t", int(p)), 0, round(1000 * (self.true_s() + s)), timestamp_type, 0
            )
            for p, s in self.kafka_ahead_s.items()
        )


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S, 2.0])
def test_a_step_of_the_wall_clock_moves_no_decision(step_s):
    time = Time()
    time.passes(10, by_wall=10 + step_s)
    for _ in range(3):
        assert abs(time.ahead_s()) < 0.002
        time.write()
        time.passes(HOUR_S)


def test_a_wall_clock_that_is_corrected_slowly_is_followed():
    time = Time()
    for _ in range(1000):
        time.passes(10, by_wall=10.01)
        time.clock.now()
    assert time.ahead_s() == pytest.approx(10, abs=0.01)


def test_a_step_that_kafka_confirms_is_followed():
    """A machine that was suspended: its monotonic clock stood still meanwhile."""
    time = Time(**{"0": HOUR_S})
    time.passes(1, by_wall=1 + HOUR_S)
    assert abs(time.ahead_s()) < 0.002
    time.write()
    assert time.ahead_s() == pytest.approx(HOUR_S, abs=0.002)


@pytest.mark.parametrize(("ahead_s", "said"), [(-61.0, "61 s ahead of"), (7200.0, "7200 s behind")])
def test_a_clock_that_is_far_off_is_an_error_that_says_by_how_much(ahead_s, said):
    with pytest.raises(ClockError, match=said):
        Time(**{"0": ahead_s}).write()


def test_a_clock_that_is_a_little_off_is_none():
    time = Time(**{"0": 59.0})
    time.write()
    assert abs(time.ahead_s()) < 0.002


def test_one_broker_with_a_wrong_clock_stops_nobody():
    Time(**{"0": 0.1, "1": -0.2, "2": HOUR_S}).write()
    with pytest.raises(ClockError):
        Time(**{"0": HOUR_S, "1": -0.2, "2": HOUR_S}).write()


def test_a_step_of_a_broker_beside_the_worker_moves_no_decision():
    time = Time(**{"0": 0.0, "1": 0.0, "2": 0.0})
    time.write()
    time.passes(10, by_wall=10 + HOUR_S)
    time.kafka_ahead_s = {"0": HOUR_S}
    time.write()
    assert abs(time.ahead_s()) < 0.002


def test_partitions_that_were_written_long_ago_do_not_hide_a_clock_that_drifts():
    time = Time(**{str(partition): 0.0 for partition in range(5)})
    time.write()
    time.kafka_ahead_s = {"8": -30.0, "9": -30.0}
    time.passes(50)
    time.write()
    time.kafka_ahead_s = {"8": -61.0, "9": -61.0}
    time.passes(50)
    with pytest.raises(ClockError, match="61 s ahead of"):
        time.write()


def test_times_that_no_broker_has_given_are_not_compared():
    Time(**{"0": HOUR_S}).write(timestamp_type=0)
