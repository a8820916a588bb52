"""The released files of `schemas/`: a file is named `<message>.v<version>.avsc` and never edited.

`ids.json` gives each its id, for ever, and its SHA-256 to prove it. `python -m order_service.wire.schemas.files` says
what is wrong with them, and what to do.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from order_service.domain.messages import COMMAND_TYPES, FACT_TYPES, Rejection
from order_service.wire.schemas import evolution

FIRST_ID: Final = 1_000_000_001
"""Far above what a registry gives, which counts from 1."""

NAMESPACE: Final = "orders.v1"
NAMES: Final = frozenset(message.__name__ for message in (*FACT_TYPES, *COMMAND_TYPES, Rejection))
FILE: Final = re.compile(r"[A-Za-z]+\.v[1-9][0-9]*\.avsc")
RELEASED: Final = {13: "95859c9136bfe1f7325b86a832f910d3d385d5141826aafb0aaf8288c6d8c21d"}
"""The SHA-256 of the first so many lines of `ids.json`, as they were when they were released: they stay as they are."""


class ReleasedFile(Struct, frozen=True):
    """A line of `ids.json`."""

    id: int
    file: str
    sha256: str


def folder() -> Traversable:
    """Find the released files: inside the package where it is installed, beside it in a checkout."""
    installed = files("order_service") / "schemas"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "schemas"


def entries(where: Traversable) -> list[ReleasedFile]:
    """Read `ids.json`, also what stands in it twice."""
    pairs = json.loads((where / "ids.json").read_text("utf-8"), object_pairs_hook=list)
    return [ReleasedFile(int(schema_id), **dict(entry)) for schema_id, entry in pairs]


def name_and_version(file: str) -> tuple[str, int]:
    """Take a file's name apart: `OrderPaid.v1.avsc` is OrderPaid, 1."""
    name, version, _ = file.split(".")
    return name, int(version.removeprefix("v"))


def faults(where: Traversable) -> list[str]:
    """Say what is wrong with the files of a folder, a line each, with its cure; nothing if all is well."""
    try:
        listed = entries(where)
    except (ValueError, TypeError) as error:
        return [f"ids.json must be an object of ids, each with a file and its sha256: {error}"]
    found = sorted(file.name for file in where.iterdir() if file.name.endswith(".avsc"))
    if odd := [file for file in found if not FILE.fullmatch(file)]:
        return [f"{file} must be called <message>.v<version>.avsc" for file in odd]
    return [
        *_faults_of_releases(listed),
        *_faults_of_ids(listed),
        *(f"{entry.file} is not there: a released file stays" for entry in listed if entry.file not in found),
        *_faults_of_files(where, found, {entry.file: entry for entry in listed}, len(listed)),
        *_faults_of_versions(where, found),
    ]


def _faults_of_releases(listed: list[ReleasedFile]) -> Iterator[str]:
    for count, digest in RELEASED.items():
        if digest_of(listed[:count]) != digest:
            yield f"the first {count} lines of ids.json were released, and are not as they were: put them back"


def digest_of(listed: list[ReleasedFile]) -> str:
    """Give what RELEASED holds of these entries."""
    return sha256("\n".join(f"{entry.id} {entry.file} {entry.sha256}" for entry in listed).encode()).hexdigest()


def _faults_of_ids(listed: list[ReleasedFile]) -> Iterator[str]:
    for expected, entry in enumerate(listed, FIRST_ID):
        if entry.id != expected:
            yield (
                f"{entry.file} has the id {entry.id}, and must have {expected}: ids are counted up from {FIRST_ID} in "
                "the order of their lines, and each is given once"
            )
    for file, count in Counter(entry.file for entry in listed).items():
        if count > 1:
            yield f"{file} has {count} ids: leave it the first one"


def _faults_of_files(
    where: Traversable, found: list[str], listed: dict[str, ReleasedFile], count: int
) -> Iterator[str]:
    for file in found:
        digest = sha256((where / file).read_bytes()).hexdigest()
        if file not in listed:
            line = f'"{FIRST_ID + count}": {{"file": "{file}", "sha256": "{digest}"}}'
            yield f"{file} has no id: if it is to be released as it is, add to ids.json {line}"
        elif listed[file].sha256 != digest:
            yield (
                f"{file} was edited after its release: what was written by it would be read wrongly; take the edit "
                "back, and put it into a new file with the next version"
            )


def _faults_of_versions(where: Traversable, found: list[str]) -> Iterator[str]:
    read = {name_and_version(file): _read(where / file) for file in found}
    for (name, version), avro in read.items():
        if name not in NAMES or (avro.get("namespace"), avro.get("name")) != (NAMESPACE, name):
            yield f"{name}.v{version}.avsc must be the record {NAMESPACE}.{name} of a message in domain/messages.py"
        for field in avro.get("fields", ()):
            if not field.get("doc"):
                yield f"{name}.v{version}.avsc: say in `doc` what the field `{field.get('name')}` means"
    for before, later in pairwise(sorted(read)):
        if later[0] == before[0]:
            yield from _faults_of_pair(later[0], before[1], later[1], read[before], read[later])


def _read(file: Traversable) -> dict[str, Any]:
    """Read a schema; one that is none has neither name nor fields."""
    try:
        avro = json.loads(file.read_text("utf-8"))
    except ValueError:
        return {}
    return avro if isinstance(avro, dict) else {}


def _faults_of_pair(name: str, before: int, later: int, old: Any, new: Any) -> Iterator[str]:
    if later != before + 1:
        yield f"{name}.v{later}.avsc follows on v{before}: call it v{before + 1}"
    try:
        wrong = evolution.faults(old, new)
    except evolution.NotAvro as error:
        wrong = [str(error)]
    yield from (f"{name}.v{later}.avsc cannot follow on v{before}: {fault}" for fault in wrong)


def main() -> int:
    """Say what is wrong; 1 if anything is."""
    found = faults(folder())
    for fault in found:
        print(f"schemas: {fault}", file=sys.stderr)  # noqa: T201
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
