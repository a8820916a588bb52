"""What is cut from a log: the end of a transaction stays the end of the log, and enough of it is lost."""

import struct

import pytest

from chaos.faults.broker_data import DATA, cut_marker, cut_tail, removed_by_compaction

TURN, MARKER = 400, 78


def _batch(length: int, *, is_control: bool, offset: int = 0, count: int = 1, last: int | None = None) -> bytes:
    head = struct.pack(">qi", offset, length - 12)
    attributes = struct.pack(">hi", 0x30 if is_control else 0x10, count - 1 if last is None else last - offset)
    return head + bytes(9) + attributes + bytes(30) + struct.pack(">i", count) + bytes(length - len(head) - 49)


TRANSACTION = _batch(TURN, is_control=False) + _batch(MARKER, is_control=True)


@pytest.mark.parametrize(
    ("old", "new", "left"),
    [
        pytest.param(10, 10, {0: 10, 10: 7}, id="behind a transaction of the newest segment"),
        pytest.param(10, 3, {0: 10}, id="the whole newest segment"),
        pytest.param(10, 1, {0: 8}, id="the newest segment holds claims, and goes with turns of the one before"),
        pytest.param(10, 0, {0: 7}, id="the newest segment is empty"),
        pytest.param(1, 1, {0: 0}, id="all that there is"),
    ],
)
def test_a_log_loses_its_last_transactions_however_short_its_newest_segment_is(tmp_path, old, new, left):
    log = tmp_path / DATA / "orders-0"
    log.mkdir(parents=True)
    for offset, count in ((0, old), (10, new)):
        (log / f"{offset:020}.log").write_bytes(TRANSACTION * count)
        (log / f"{offset:020}.index").touch()
    lost = cut_tail(tmp_path, "orders", 0, lose=2 * len(TRANSACTION) + 1, is_transactional=True)
    sizes = {int(path.stem): path.stat().st_size for path in log.glob("*.log")}
    assert sizes == {offset: count * len(TRANSACTION) for offset, count in left.items()}
    assert lost == (old + new) * len(TRANSACTION) - sum(sizes.values())


@pytest.mark.parametrize(("records", "offset", "left"), [(1, 7, 5), (2, 4, 3), (3, 0, 1)])
def test_a_log_loses_the_marker_of_its_last_transaction_of_so_many_records(tmp_path, records, offset, left):
    log = tmp_path / DATA / "orders-0" / f"{0:020}.log"
    log.parent.mkdir(parents=True)
    batches = []
    for first, count in ((0, 3), (4, 2), (7, 1)):
        batches.append(_batch(TURN, is_control=False, offset=first, count=count))
        batches.append(_batch(MARKER, is_control=True, offset=first + count))
    log.write_bytes(b"".join(batches))
    log.with_suffix(".timeindex").touch()
    assert cut_marker(tmp_path, "orders", 0, records=records) == offset
    assert log.read_bytes() == b"".join(batches[:left])
    assert list(log.parent.iterdir()) == [log]


def test_what_compaction_has_removed_is_counted_once_per_partition_and_not_what_is_being_written(tmp_path):
    for node, kept in (("node-1", 3), ("node-2", 1)):
        for partition in range(2):
            log = tmp_path / node / DATA / f"orders-{partition}"
            log.mkdir(parents=True)
            merged = _batch(TURN, is_control=False, offset=0, count=kept, last=8) + _batch(
                MARKER, is_control=True, offset=9
            )
            (log / f"{0:020}.log").write_bytes(merged)
            (log / f"{5:020}.log").write_bytes(_batch(MARKER, is_control=True, offset=9))  # replaced, not deleted yet
            growing = _batch(TURN, is_control=False, offset=10, count=2) + TRANSACTION[:TURN]
            (log / f"{10:020}.log").write_bytes(growing[:-1])
        (tmp_path / node / DATA / "orders.other-0").mkdir()
    assert removed_by_compaction([tmp_path / "node-1", tmp_path / "node-2"], "orders") == (2 * 8, 2 * 12)
