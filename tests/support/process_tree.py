"""The processes that a process has started, and those that these have."""

from pathlib import Path


def descendants(pid: int) -> dict[int, list[str]]:
    """Return the arguments of each descendant of a process, by pid. One that ends meanwhile may be left out."""
    found: dict[int, list[str]] = {}
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, _read(task).split()):
            found[child] = _read(Path(f"/proc/{child}/cmdline")).split("\0")
            found |= descendants(child)
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def has_ended(pid: int) -> bool:
    """Return whether a process has ended. It may be a zombie that is not reaped yet."""
    state = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return not state or state[0] == "Z"
