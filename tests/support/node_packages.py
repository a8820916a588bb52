"""The packages of Node.js programs, installed once for each lock file and kept beside Kafka's jars."""

import hashlib
import shutil
import subprocess
from pathlib import Path

from order_service.local.kafka import cache_dir, find_program, made_once

LOCKED = ("package.json", "package-lock.json")


def link_packages(program: Path) -> None:
    """Link the packages that the lock file of a program names as its `node_modules`."""
    digest = hashlib.blake2b(b"".join((program / name).read_bytes() for name in LOCKED), digest_size=4).hexdigest()

    def install(folder: Path) -> None:
        for name in LOCKED:
            shutil.copy(program / name, folder)
        fetch = [find_program("npm") or "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(fetch, cwd=folder, check=True, timeout=300)

    packages = made_once(cache_dir() / f"node-{digest}", install)
    (program / "node_modules").symlink_to(packages / "node_modules")
