"""A worker that the permissions of files bind although root runs it: `python -m tests.support.unprivileged`."""

import ctypes
import os
import re
import struct
from pathlib import Path

from tests.support import worker

CAPSET = {"x86_64": 126, "aarch64": 91}
VERSION = 0x20080522
OVERRIDES = 0b110
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, as bits (capabilities(7))."""


def drop_overrides() -> None:
    """Drop the capabilities by which root ignores the permissions of files; threads that start later lack them."""
    status = Path("/proc/thread-self/status").read_text()
    found = [re.search(rf"^{name}:\t(\w+)$", status, re.MULTILINE) for name in ("CapEff", "CapPrm", "CapInh")]
    sets = [int(each[1], 16) for each in found if each]
    low = [each & ~OVERRIDES & 0xFFFFFFFF for each in sets]
    high = [each >> 32 for each in sets]
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = struct.pack("Ii", VERSION, 0), struct.pack("6I", *low, *high)
    if libc.syscall(CAPSET[os.uname().machine], header, data):
        raise OSError(ctypes.get_errno(), "capset")


if __name__ == "__main__":
    drop_overrides()
    worker.main()
