"""What the garbage collector is told."""

import gc

from order_service.runtime.garbage_collector import freeze_objects


def test_what_is_there_is_looked_at_no_more():
    try:
        freeze_objects()
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()
