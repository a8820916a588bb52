"""Workers that die, or stop past their session timeout and wake up, at every step of a turn and of a claim.

In each test one worker is killed and one is stopped at the same step; a third, the heir, takes over what they had.
"""

import signal

import pytest

from tests.service import histories, until

TURN = ("turn.taken", "turn.decided", "turn.begun", "turn.produced", "turn.committed")
CLAIM = ("claim.locked", "claim.read", "claim.fenced", "claim.barrier", "claim.named")
FENCED = 10


def send_until(service, sent, condition, what):
    """Send the life of one order after the other until the condition holds."""

    def send_and_look():
        commands = histories(1, first=len(sent) // 5 + 1)
        service.send(commands)
        sent.extend(commands)
        return condition()

    until(send_and_look, what)


def is_gone_or_a_member(zombie, heir):
    """Tell whether a woken worker has ended, or has lanes of its own again beside the heir's."""
    if zombie.process.poll() is not None:
        return True
    return zombie.is_ready() and zombie.lanes() > 0 and zombie.lanes() + heir.lanes() == 4


@pytest.mark.parametrize("step", TURN + CLAIM)
def test_whatever_is_cut_off_is_done_once_by_another(service, step):
    sent = []
    heir = service.start_worker()
    if step in CLAIM:  # so that there is an owner to take over from
        heir.wait_lanes(4)
    killed, stopped = (service.start_worker((step, 1 if step in CLAIM else 3, name)) for name in ("SIGKILL", "SIGSTOP"))
    send_until(
        service, sent, lambda: killed.process.poll() is not None and stopped.is_stopped(), f"two workers reach {step}"
    )
    assert killed.process.returncode == -signal.SIGKILL
    heir.wait_lanes(4)
    send_until(service, sent, lambda: service.outcome_count() >= len(sent), "the heir has decided all")
    stopped.send(signal.SIGCONT)
    send_until(service, sent, lambda: is_gone_or_a_member(stopped, heir), "the zombie ends or becomes a member")
    assert stopped.process.poll() in {None, FENCED}
    service.wait_outcomes(len(sent))
    service.check(sent)
