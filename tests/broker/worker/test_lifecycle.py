"""The main job: commands of a foreign producer come out as events at a foreign consumer."""

from tests.support.samples import amend, cancel, create, deliver, pay, ship
from tests.support.service import GRACE_S


def test_an_order_goes_from_created_to_delivered(service):
    commands = [create, amend, pay, ship, deliver, cancel]
    worker = service.start_worker().wait_ready()
    service.send(commands)
    service.wait_outcomes(6)
    assert [type(event.fact).__name__ for event in service.events()] == [
        "OrderCreated",
        "OrderAmended",
        "OrderPaid",
        "OrderShipped",
        "OrderDelivered",
    ]
    assert [rejection.reason for rejection in service.rejections()] == ["already_delivered"]
    service.check(commands)
    worker.send(15)
    assert worker.wait_ended(within_s=GRACE_S) == 0
