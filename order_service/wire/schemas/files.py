"""The released schema files in `schemas/`: a file is named `<message>.v<version>.avsc` and never edited.

`ids.json` has the permanent id and the SHA-256 of each file. `python -m order_service.wire.schemas.files` reports what
is wrong with the files, and what to do.
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
from order_service.errors import NotAvro
from order_service.wire.schemas import evolution

FIRST_ID: Final = 1_000_000_001
"""The first id, far above those of a registry, which count from 1."""

NAMESPACE: Final = "orders.v1"
FACTS: Final = frozenset(message.__name__ for message in FACT_TYPES)
NAMES: Final = FACTS | {message.__name__ for message in (*COMMAND_TYPES, Rejection)}
FILE: Final = re.compile(r"[A-Za-z]+\.v[1-9][0-9]*\.avsc")
RELEASED: Final = {14: "b1123a6950296fc57f09e3c81aea1527092ced83ba3148be1b2e02af43d802fe"}
"""The SHA-256 of the first lines of `ids.json` by their count, a line for each release with new schemas."""


class ReleasedFile(Struct, frozen=True):
    """One line of `ids.json`."""

    id: int
    file: str
    sha256: str


def folder() -> Traversable:
    """Return the folder of the released files: inside the installed package, or beside it in a checkout."""
    installed = files("order_service") / "schemas"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "schemas"


def every_event() -> dict[str, Any]:
    """Return the record of the fields with which every event begins, also one of a later version."""
    return _read(folder() / "OrderDelivered.v1.avsc")  # which has no other fields


def entries(where: Traversable) -> list[ReleasedFile]:
    """Read `ids.json`, including duplicate ids."""
    pairs = json.loads((where / "ids.json").read_text("utf-8"), object_pairs_hook=list)
    return [ReleasedFile(int(schema_id), **dict(entry)) for schema_id, entry in pairs]


def name_and_version(file: str) -> tuple[str, int]:
    """Split a file name: `OrderPaid.v1.avsc` is OrderPaid, 1."""
    name, version, _ = file.split(".")
    return name, int(version.removeprefix("v"))


def faults(where: Traversable) -> list[str]:
    """Return what is wrong with the files of a folder: one line for each fault, with its remedy."""
    try:
        listed = entries(where)
    except (ValueError, TypeError) as error:
        return [f"ids.json must be an object of ids, each with a file and its sha256: {error}"]
    names = sorted(file.name for file in where.iterdir() if file.name.endswith(".avsc"))
    if misnamed := [name for name in names if not FILE.fullmatch(name)]:
        return [f"{name} must be named <message>.v<version>.avsc" for name in misnamed]
    return [
        *_faults_of_releases(listed),
        *_faults_of_ids(listed),
        *(f"{entry.file} is missing: restore the released file" for entry in listed if entry.file not in names),
        *_faults_of_files(where, names, {entry.file: entry for entry in listed}, len(listed)),
        *_faults_of_versions(where, names),
    ]


def _faults_of_releases(listed: list[ReleasedFile]) -> Iterator[str]:
    for count, digest in RELEASED.items():
        if digest_of(listed[:count]) != digest:
            yield f"the first {count} lines of ids.json were changed after their release: restore them"
            return  # those of a later release include these


def digest_of(listed: list[ReleasedFile]) -> str:
    """Return the SHA-256 of these entries, as it stands in RELEASED."""
    return sha256("\n".join(f"{entry.id} {entry.file} {entry.sha256}" for entry in listed).encode()).hexdigest()


def _faults_of_ids(listed: list[ReleasedFile]) -> Iterator[str]:
    for expected, entry in enumerate(listed, FIRST_ID):
        if entry.id != expected:
            yield (
                f"{entry.file} has the id {entry.id}, expected {expected}: ids count up from {FIRST_ID} in the order "
                "of the lines, and each id is used once"
            )
    for file, count in Counter(entry.file for entry in listed).items():
        if count > 1:
            yield f"{file} has {count} ids: keep the first one"


def _faults_of_files(
    where: Traversable, names: list[str], listed: dict[str, ReleasedFile], count: int
) -> Iterator[str]:
    for file in names:
        digest = sha256((where / file).read_bytes()).hexdigest()
        if file not in listed:
            line = f'"{FIRST_ID + count}": {{"file": "{file}", "sha256": "{digest}"}}'
            yield f"{file} has no id: to release it as it is, add to ids.json {line}"
        elif listed[file].sha256 != digest:
            yield (
                f"{file} was edited after its release, so existing records would be decoded incorrectly: undo the "
                "edit, and make it in a new file with the next version"
            )


def _faults_of_versions(where: Traversable, names: list[str]) -> Iterator[str]:
    schemas = {name_and_version(file): _read(where / file) for file in names}
    for (name, version), avro in schemas.items():
        if name not in NAMES or (avro.get("namespace"), avro.get("name")) != (NAMESPACE, name):
            yield f"{name}.v{version}.avsc must be the record {NAMESPACE}.{name} of a message in domain/messages.py"
        if name in FACTS and not _begins_as_every_event(avro):
            yield f"{name}.v{version}.avsc must begin with the fields of every event, as OrderDelivered.v1.avsc does"
        for field in avro.get("fields", ()):
            if not field.get("doc"):
                yield f"{name}.v{version}.avsc: describe in `doc` what the field `{field.get('name')}` means"
    for before, later in pairwise(sorted(schemas)):
        if later[0] == before[0]:
            yield from _faults_of_pair(later[0], before[1], later[1], schemas[before], schemas[later])


def _begins_as_every_event(avro: dict[str, Any]) -> bool:
    try:
        return evolution.begins_with(every_event(), avro)
    except NotAvro:
        return False


def _read(file: Traversable) -> dict[str, Any]:
    """Read a schema; return an empty one if the file does not contain a JSON object."""
    try:
        avro = json.loads(file.read_text("utf-8"))
    except ValueError:
        return {}
    return avro if isinstance(avro, dict) else {}


def _faults_of_pair(name: str, before: int, later: int, old: Any, new: Any) -> Iterator[str]:
    if later != before + 1:
        yield f"{name}.v{later}.avsc follows v{before}: name it v{before + 1}"
    try:
        changes = evolution.faults(old, new)
    except NotAvro as error:
        changes = [str(error)]
    yield from (f"{name}.v{later}.avsc cannot follow v{before}: {fault}" for fault in changes)


def main() -> int:
    """Print the faults of the released files; return 1 if there are any."""
    lines = faults(folder())
    for line in lines:
        print(f"schemas: {line}", file=sys.stderr)  # noqa: T201
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
