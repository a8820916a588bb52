"""A rolling update and its way back: workers of the previous release and of this one share a group.

`previous_release.tar.xz` has the packages of a release, without the files of the web pages. 1.0.0 is the first release,
so it is an earlier commit: `git archive 7152a69 order_service schemas ':!order_service/web/static' | xz -9e`. It
is older than one fetch per turn, several processes, standbys and tables on disk. CONTRIBUTING says when to replace it.
"""

import signal
import tarfile
from pathlib import Path

import pytest

from order_service.views.tables import FORM
from tests.support.command_line import CommandLine
from tests.support.service import GRACE_S, ROOT, histories, until

PREVIOUS = Path(__file__).with_name("previous_release.tar.xz")
WORKER = ("order_service.cli", "worker")
PROJECTOR = ("order_service.cli", "projector")


@pytest.fixture(scope="module")
def previous(tmp_path_factory):
    place = tmp_path_factory.mktemp("previous")
    with tarfile.open(PREVIOUS) as archive:
        archive.extractall(place, filter="data")
    (place / "order_service/web/static").symlink_to(ROOT / "order_service/web/static")
    return place


class Fleet:
    """Two workers of a group, each under its own name, whatever its release."""

    def __init__(self, service, previous):
        self._service = service
        self._roots = {"previous": previous, "this": ROOT}
        self._workers = {}

    def start(self, number, release):
        """Start a worker under the name of the one with this number, and wait until both run all partitions."""
        named = {"ORDERS_ADMIN_PORT": str(self._workers[number].admin_port)} if number in self._workers else {}
        self._workers[number] = self._service.start_worker(
            module=WORKER, root=self._roots[release], ORDERS_LOG="json", ORDERS_STANDBYS="1", **named
        )
        until(self._is_whole, f"all partitions run, one worker is of {release} release")

    def kill(self, number):
        self._workers[number].send(signal.SIGKILL)
        self._workers[number].wait_ended()

    def stop(self, number):
        self._workers[number].send(signal.SIGTERM)
        assert self._workers[number].wait_ended(within_s=GRACE_S) == 0

    def check(self):
        """Check what an operator looks at after an upgrade: each lane runs."""
        workers = [word for each in self._workers.values() for word in ("--worker", f"127.0.0.1:{each.admin_port}")]
        [listing] = CommandLine(self._service.environment).json("lanes", *workers)
        assert [lane["state"] for lane in listing["lanes"]] == ["running"] * self._service.partitions

    def _is_whole(self):
        return sum(each.is_ready() and each.lanes() for each in self._workers.values()) == self._service.partitions


@pytest.mark.timeout(240)  # it starts nine workers
def test_workers_of_both_releases_share_a_group_forward_and_back(service, previous):
    """While commands come, one worker after the other is replaced, some by kill -9. Only this release has standbys."""
    fleet = Fleet(service, previous)
    commands = histories(200)
    CommandLine(service.environment)("topics", "check")
    fleet.start(1, "previous")
    fleet.start(2, "previous")
    with service.sending(commands, per_s=50):
        fleet.kill(1)
        fleet.start(1, "this")
        fleet.kill(1)
        fleet.start(1, "this")
        fleet.stop(2)
        fleet.start(2, "this")
        fleet.check()
        fleet.stop(1)
        fleet.start(1, "previous")
        fleet.kill(1)
        fleet.start(1, "previous")
        fleet.kill(2)
        fleet.start(2, "previous")
    service.wait_outcomes(len(commands))
    service.wait_visible()
    service.check(commands)
    assert "findings: 0" in CommandLine(service.environment)("verify").stdout


def test_views_of_a_later_release_are_refused_until_they_are_dropped(service, previous, tmp_path):
    """Forward, a projector builds the views again by itself. Back, it does so once an operator has dropped them."""
    views = {"ORDERS_DATABASE_URL": f"sqlite:///{tmp_path}/views.db", "ORDERS_LOG": "json"}
    for root in (previous, ROOT):
        service.start_worker(module=PROJECTOR, root=root, **views).wait_ready().end()
    refused = service.start_worker(module=PROJECTOR, root=previous, **views)
    reason = f"the views have schema version {FORM}, this program supports 8: install a newer release"
    until(lambda: reason in refused.log(), "the projector of the previous release says why it refuses the views")
    refused.end()
    for file in tmp_path.glob("views.db*"):
        file.unlink()
    service.start_worker(module=PROJECTOR, root=previous, **views).wait_ready()
