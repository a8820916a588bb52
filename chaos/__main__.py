"""`python -m chaos`: run the load and the faults that SEED, COMMANDS and their like name, and give the verdict.

`python -m chaos outage` lets the User Service be away while 100,000 creates come (CREATES, AWAY_S);
`python -m chaos look DIRECTORY` reads the topics of a run again that was kept.
"""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal, cast

import msgspec

from chaos import outage
from chaos.cluster import Cluster
from chaos.fleet import ENDS, ENDS_OF
from chaos.plan import Sizes
from chaos.run import Run
from chaos.verdict.checker import Verdict, verdict_of
from chaos.verdict.judging import RECORD, Kept, check, forget


def main(arguments: list[str]) -> int:
    """Exit status: 0 if all counts are 0, 1 if not, 2 for a wrong call."""
    signal.signal(signal.SIGTERM, _end)
    if arguments[:1] == ["look"] and len(arguments) == 2:
        return look(Path(arguments[1]))
    if arguments == ["outage"]:
        return sit_out()
    if arguments:
        say("usage: python -m chaos [outage | look DIRECTORY]")
        return 2
    try:
        sizes = Sizes.of()
    except ValueError as error:
        say(str(error))
        return 2
    return prove(sizes)


def prove(sizes: Sizes) -> int:
    """Run, and say what was found."""
    say(f"{sizes.commands:,} commands on {sizes.orders:,} orders at {sizes.rate:,}/s, {sizes.faults} faults: {sizes}")
    directory = new_directory()
    run = Run(sizes, directory, say)
    with told_where(directory):
        verdict = run.run()
    expected = ENDS | {code: why for ends in ENDS_OF.values() for code, why in ends.items()}
    for code, count in sorted(run.ends.items()):
        say(f"workers that ended with {code} ({expected.get(code, 'NOT EXPECTED')}): {count}")
    for (name, code), count in sorted(run.outside_ends.items()):
        say(f"{name} processes that ended with {code}: {count}")
    for problem in run.problems:
        say(f"NOT AS PLANNED: {problem}")
    return concluded(directory, verdict, is_clean=verdict.is_clean and not run.problems)


def sit_out() -> int:
    """Sit out an outage of the User Service, and say what was found."""
    directory = new_directory()
    with told_where(directory):
        verdict = outage.run(directory, say)
    return concluded(directory, verdict, is_clean=verdict.is_clean)


def new_directory() -> Path:
    """Make a place for logs and topics, and say where it is."""
    directory = Path(mkdtemp(prefix="orders-faults-"))
    say(f"logs and topics: {directory}")
    return directory


@contextmanager
def told_where(directory: Path) -> Iterator[None]:
    """Print where logs and topics are when a run ends by an error."""
    try:
        yield
    except Exception:
        say(how_to_look(directory))
        raise


def how_to_look(directory: Path) -> str:
    """Return where logs and topics are."""
    return f"Kept: {directory}. Logs: worker-*.log, load.log; topics: python -m chaos look {directory}"


def concluded(directory: Path, verdict: Verdict, *, is_clean: bool) -> int:
    """Keep logs and topics only if something is not as it must be, give the verdict, and the exit status."""
    if is_clean:
        forget(directory)
    else:
        say(how_to_look(directory))
    for line in verdict.outcome_lines():
        say(line)
    say(str(verdict))
    return 0 if is_clean else 1


def look(directory: Path) -> int:
    """Start the Kafka of an earlier run again, and check its topics once more."""
    kept = msgspec.json.decode((directory / RECORD).read_bytes(), type=Kept)
    with Cluster(directory / "kafka", cast("Literal[1, 3]", kept.sizes.brokers), proxied=False) as cluster:
        findings = check(kept, cluster.bootstrap_servers, say)
    verdict = verdict_of(findings, faults=0, seed=kept.sizes.seed)
    say(str(verdict))
    return 0 if verdict.is_clean else 1


def say(line: str) -> None:
    """Print a line of progress at once."""
    sys.stdout.write(line + "\n" if line.startswith("lost=") else f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stdout.flush()


def _end(*_: Any) -> None:
    raise SystemExit(143)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
