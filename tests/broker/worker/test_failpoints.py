"""Workers that die, or stop past their session timeout and wake up, at every step of a turn and of a claim.

At each step one worker is killed and one is stopped; the heir, which lives throughout, takes over what they had.
"""

import signal

import pytest

from tests.support.service import Service, histories, until

STEPS = {
    "turn.taken": 3,  # the first turns of a worker are empty or have only creates
    "turn.decided": 3,
    "turn.begun": 3,
    "turn.produced": 3,
    "turn.committed": 3,
    "claim.locked": 1,
    "claim.read": 1,
    "claim.fenced": 1,
    "claim.checked": 1,
    "claim.named": 1,
}
ENDS = {0, 10, 12}
"""Of a woken worker: told to end as a member, fenced, or stopped for longer than a commit may take."""


class Estate:
    """One service, the heir, and all that was sent to it."""

    def __init__(self, service):
        self.service = service
        self.sent = []
        self.heir = service.start_worker().wait_lanes(4)

    def send(self, orders):
        commands = histories(orders, first=len(self.sent) // 5 + 1)
        self.service.send(commands)
        self.sent += commands

    def send_until(self, condition, what):
        """Send the life of one order after the other until the condition holds."""

        def send_and_look():
            self.send(1)
            return condition()

        until(send_and_look, what)

    def kill_one_of_two(self):
        """Kill a worker that has two lanes: their next claims fence it, since it has not released them."""
        victim = self.service.start_worker().wait_lanes(2)
        self.heir.wait_lanes(2)
        victim.send(signal.SIGKILL)

    def decide_more(self):
        """Send more, and wait until all is decided."""
        self.send(10)
        self.service.wait_outcomes(len(self.sent))

    def is_settled(self, zombie):
        """Return whether a woken worker has ended, or has lanes of its own again beside the heir's."""
        if zombie.process.poll() is not None:
            return True
        return zombie.is_ready() and zombie.lanes() > 0 and zombie.lanes() + self.heir.lanes() == 4


@pytest.fixture(scope="module")
def estate(bootstrap_servers, tmp_path_factory, users):
    with Service(bootstrap_servers, tmp_path_factory.mktemp("estate"), users) as service:
        yield Estate(service)


@pytest.mark.parametrize("step", STEPS)
def test_what_is_cut_off_at_a_step_is_done_once_by_another(estate, step):
    if step == "claim.fenced":
        estate.kill_one_of_two()
    killed, stopped = (estate.service.start_worker((step, STEPS[step], name)) for name in ("SIGKILL", "SIGSTOP"))
    estate.send_until(lambda: killed.process.poll() is not None and stopped.is_stopped(), f"two workers reach {step}")
    assert killed.process.returncode == -signal.SIGKILL
    estate.heir.wait_lanes(4)
    estate.decide_more()
    stopped.send(signal.SIGCONT)
    estate.send_until(lambda: estate.is_settled(stopped), "the zombie ends or becomes a member")
    stopped.send(signal.SIGTERM)
    assert stopped.wait_ended() in ENDS
    estate.decide_more()
    estate.service.check(estate.sent)
