"""The SDK alone, in an environment of its own: what only the service needs is not there, and not asked for."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.service import ROOT

UV = Path(sys.prefix) / "uv" / "bin" / "uv"
SOURCES = ("order_service", "schemas", "pyproject.toml", "README.md", "LICENSE")
NEVER = "faust, mode, sqlalchemy, psycopg, prometheus_client, jwt, typer, aiohttp.web"

PROGRAM = f"""
import asyncio, importlib.util, sys
from order_service.sdk import OrderCommands, OrderCreated, OrderEvents, Reason, once
from order_service.sdk.testing import InMemoryOrders, given, order_created, pay_order, sample_life

async def read():
    orders = InMemoryOrders()
    for event in sample_life("order-7"):
        orders.add(event)
    orders.end()
    async with orders.projection() as events:
        return [happened.event async for happened in events]

assert asyncio.run(read()) == list(sample_life("order-7"))
given(order_created()).when(pay_order(amount=1)).then(Reason.PAYMENT_MISMATCH)
assert importlib.util.find_spec("faust") is None
print([name for name in "{NEVER}".split(", ") if name in sys.modules])
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Return the programs of an environment in which nothing but the project is installed, without extras."""
    place = tmp_path_factory.mktemp("fresh")
    for name in SOURCES:  # a copy: what is built writes beside its sources
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, place / name)
    subprocess.run(
        [sys.executable, "-m", "venv", place / "venv", *(["--without-pip"] if UV.exists() else [])], check=True
    )
    programs = place / "venv" / "bin"
    pip = [UV, "pip", "install", "--quiet", "--python", programs / "python"]
    if not UV.exists():
        pip = [programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, place], check=True, timeout=110, cwd=place)
    return programs


def test_a_sample_is_read_and_the_rules_are_walked_without_faust(fresh):
    command = [fresh / "python", "-I", "-W", "error", "-c", PROGRAM]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=fresh)
    assert ended.stderr == ""
    assert ended.stdout == "[]\n"


def test_the_command_line_says_in_one_line_what_to_install(fresh):
    ended = subprocess.run([fresh / "order-service", "up"], check=False, capture_output=True, text=True, cwd=fresh)
    assert ended.returncode == 1
    assert ended.stderr == "order-service: typer is not installed: pip install 'order-service[service]'\n"


def test_what_is_imported_needs_nothing_of_the_service():
    command = [
        sys.executable,
        "-c",
        f"import sys, order_service.sdk.testing; print(sys.modules.keys() & set({NEVER.split(', ')}))",
    ]
    ended = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    assert ended.stdout == "set()\n"
