"""The next version of this program, made as docs/guide/evolving-schemas.md says: OrderShipped gets a field."""

import json
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
SCHEMA: Final = "OrderShipped.v2.avsc"
EDITS: Final = {
    "order_service/domain/messages.py": (
        "    tracking_number: str\n\n\n@final\nclass OrderDelivered(",
        "    tracking_number: str\n    service_level: str | None = None\n\n\n@final\nclass OrderDelivered(",
    ),
    "order_service/domain/order.py": (
        "OrderShipped(command.carrier, command.tracking_number)",
        'OrderShipped(command.carrier, command.tracking_number, "standard")',
    ),
}
"""What stood in a file, and what stands there now."""


def make(place: Path) -> Path:
    """Make the next version in a folder, and give the folder."""
    for name in ("order_service", "schemas"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__", "static"))
    (place / "order_service/web/static").symlink_to(ROOT / "order_service/web/static")
    shutil.copy(ROOT / "tests/end_to_end/evolution" / SCHEMA, place / "schemas")
    for file, (before, after) in EDITS.items():
        text = (place / file).read_text()
        assert text.count(before) == 1, f"{file} is not as the guide says"
        (place / file).write_text(text.replace(before, after))
    release(place)
    return place


def release(place: Path) -> None:
    """Put the line that the check asks for into ids.json; then it has nothing more to say."""
    [said] = check(place)
    add_line(place / "schemas", said.partition("add to ids.json ")[2])
    assert check(place) == []


def give_id(schemas: Path, file: str, schema_id: int) -> None:
    """Return a file of a folder an id, as its author would."""
    entry = {"file": file, "sha256": sha256((schemas / file).read_bytes()).hexdigest()}
    add_line(schemas, f'"{schema_id}": {json.dumps(entry)}')


def add_line(schemas: Path, line: str) -> None:
    """Put a line at the end of ids.json."""
    listed = (schemas / "ids.json").read_text().rstrip().removesuffix("}").rstrip()
    (schemas / "ids.json").write_text(f"{listed},\n  {line}\n}}\n")


def check(place: Path) -> list[str]:
    """Return what `make check` says of the released schemas of a version."""
    command = [sys.executable, "-m", "order_service.wire.schemas.files"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=60, check=False)
    lines = done.stderr.splitlines()
    assert done.returncode == bool(lines), done.stderr
    return lines
