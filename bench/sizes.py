"""How much is measured, and how often: BENCH_RUNS and BENCH_SCALE."""

import os
from typing import Final

RUNS: Final = int(os.environ.get("BENCH_RUNS", "3"))
SCALE: Final = float(os.environ.get("BENCH_SCALE", "1"))


def scaled(count: int) -> int:
    """Shrink a count of things by BENCH_SCALE."""
    return max(100, round(count * SCALE))


def scaled_s(seconds: float) -> float:
    """Shrink a time by BENCH_SCALE, but not below what can be measured."""
    return max(min(seconds, 2.0), seconds * SCALE)
