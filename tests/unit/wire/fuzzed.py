"""Bytes that a fuzzer makes, steered by which code they reach: `make fuzz`.

`python -m tests.unit.wire.fuzzed` takes libFuzzer's own options and folders; what reaches new code goes into the
first folder. `corpus/` is what was kept, and test_hostile.py decodes every file at every run. Atheris is no
dependency: some systems have no wheel of it.
"""

import sys

import atheris

from tests.unit.wire.table import DECODERS, value_or_error


def try_all(data: bytes) -> None:
    """Decode the bytes with every decoder."""
    for decode, encode in DECODERS:
        value_or_error(decode, encode, data)


if __name__ == "__main__":
    atheris.instrument_all()  # also what avro_codegen has compiled: no import would show it
    atheris.Setup(sys.argv, try_all)
    atheris.Fuzz()
