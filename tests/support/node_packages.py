"""The packages of Node.js programs, installed once for each lock file and kept beside Kafka's jars."""

import fcntl
import hashlib
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from order_service.local.kafka import cache_dir, find_program

LOCKED = ("package.json", "package-lock.json")


def link_packages(program: Path) -> None:
    """Link the packages that the lock file of a program names as its `node_modules`."""
    digest = hashlib.blake2b(b"".join((program / name).read_bytes() for name in LOCKED), digest_size=4).hexdigest()
    folder = cache_dir() / f"node-{digest}"
    cache_dir().mkdir(parents=True, exist_ok=True)
    with Path(cache_dir(), "node.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two processes at once one installs, and the other waits
        if not folder.is_dir():
            _install(program, folder)
    (program / "node_modules").symlink_to(folder / "node_modules")


def _install(program: Path, folder: Path) -> None:
    with TemporaryDirectory(dir=folder.parent, prefix=".node-") as unfinished:
        packages = Path(unfinished, "packages")
        packages.mkdir()
        for name in LOCKED:
            shutil.copy(program / name, packages)
        fetch = [find_program("npm") or "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(fetch, cwd=packages, check=True, timeout=300)
        packages.rename(folder)
