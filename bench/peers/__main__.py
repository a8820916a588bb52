"""Measure the peers, or the parts that are named: `python -m bench.peers [parity] [backlog] [latency]`."""

import argparse
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

import bench.latency
from bench.__main__ import machine
from bench.others import Others, listening_on
from bench.peers import backlog, latency, parity, peer
from bench.watching import WrongResult
from bench.world import World, warm_up
from tests.support.kafka import running_kafka

PARTS = ("parity", "backlog", "latency")


def main(arguments: list[str]) -> int:
    """Measure; 0 whatever the figures are, 1 if an outcome was wrong, 2 for an unknown name or a missing peer."""
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    signal.signal(signal.SIGTERM, _end)
    console.print(machine(options.rounds), highlight=False)
    with TemporaryDirectory(prefix="orders-peers-") as place, running_kafka(Path(place) / "kafka") as servers:
        broker = listening_on(int(servers.split(",")[0].rpartition(":")[2]))
        if broker is None:
            console.print("Kafka is not a process on this machine: its processor time is unknown, and may be others'.")
        world = World(servers, Path(place), console, Others(broker))
        try:
            _measure(world, broker, options)
        except WrongResult as error:
            console.print(f"A wrong result: {error}", markup=False)
            return 1
        except peer.NoSuchPeer as error:
            console.print(error, markup=False)
            return 2
    return 0


def _measure(world: World, broker: int | None, options: argparse.Namespace) -> None:
    parts = options.parts or PARTS
    chosen = {
        "parity": options.peers or parity.DEFAULT,
        "backlog": options.peers or backlog.DEFAULT,
        "latency": options.peers or latency.DEFAULT,
    }
    for name in {name for part in parts for name in chosen[part]}:
        peer.named(name).check_installed()
    if "parity" in parts:
        parity.check(world, chosen["parity"])
    if "backlog" in parts or "latency" in parts:
        world.say(f"warm-up: {warm_up(world.servers):,} records in transactions written and read; now the service")
        bench.latency.warm_up(world)
    if "backlog" in parts:
        backlog.measure(world, broker, chosen["backlog"], rounds=options.rounds, orders=options.orders)
    if "latency" in parts:
        latency.measure(
            world,
            broker,
            chosen["latency"],
            rounds=options.rounds,
            rates=options.rates,
            partitions=options.partitions,
            seconds=options.seconds,
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description="Measure our worker beside its peers.")
    parser.add_argument("parts", nargs="*", type=_part, metavar="part", help=f"{', '.join(PARTS)} (all)")
    parser.add_argument("--peers", type=_names, help="names with commas between them (a part's own choice)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each figure is taken (%(default)s)")
    parser.add_argument("--orders", type=int, default=50_000, help="backlog: orders of six commands (%(default)s)")
    parser.add_argument("--rates", type=_counts, default=[500, 3_000], help="latency: commands/s (500,3000)")
    parser.add_argument("--partitions", type=_counts, default=[4, 12], help="latency: numbers of partitions (4,12)")
    parser.add_argument("--seconds", type=float, default=20.0, help="latency: seconds per rate (%(default)g)")
    return parser


def _part(text: str) -> str:
    if text not in PARTS:
        raise argparse.ArgumentTypeError(f"no such part: {text}; there are: {', '.join(PARTS)}")
    return text


def _names(text: str) -> list[str]:
    return text.split(",")


def _counts(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _end(*_: Any) -> None:
    raise SystemExit(143)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
