"""The readiness of a running process: Kafka does not show whether lanes run, are claimed or parked."""

from typing import Final

import msgspec
from msgspec import Struct

from order_service.errors import NoResponse
from order_service.http_client import HttpClient, Reply
from order_service.operations.doctor.checks.check import Result, not_checked, ok, problem, warning
from order_service.settings import Settings

ANSWER_WITHIN_S: Final = 5.0
BODY_MAX: Final = 4 * 1024 * 1024


class Readiness(Struct):
    """The body of `/health/ready`."""

    ready: bool
    starting: bool
    faults: list[str]


async def check_readiness(settings: Settings) -> list[Result]:
    """Read the readiness of the process at the admin address of the settings."""
    address = admin_address(settings)
    try:
        reply = await get(f"{address}/health/ready")
        readiness = msgspec.json.decode(reply.body, type=Readiness)
    except NoResponse:
        return [
            not_checked(
                f"No process answers at {address}: Kafka does not show whether lanes run, are claimed or parked.",
                "Read /health/ready of each worker, or set ORDERS_ADMIN_HOST and ORDERS_ADMIN_PORT to those of one.",
            )
        ]
    except msgspec.MsgspecError:
        text = f"The program at {address} is not a process of this service."
        return [not_checked(text, "Set ORDERS_ADMIN_HOST and ORDERS_ADMIN_PORT to the address of a worker.")]
    return judge_readiness(address, readiness)


def judge_readiness(address: str, readiness: Readiness) -> list[Result]:
    """Return why a process is not ready. One that still starts gives warnings."""
    judge = warning if readiness.starting else problem
    fix = 'docs/operations/reasons.md has what to do for each text: "Why a process is not ready".'
    results = [judge(f"The process at {address} is not ready: {fault}.", fix) for fault in readiness.faults]
    return results or [ok(f"The process at {address} is ready.")]


def admin_address(settings: Settings) -> str:
    """Return where a process with these settings serves its health, as seen from this machine."""
    host = settings.admin_address
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104, it is not listened on
    return f"http://[{host}]:{settings.admin_port}" if ":" in host else f"http://{host}:{settings.admin_port}"


async def get(url: str) -> Reply:
    """Send a request without a credential, and return the response. Raises NoResponse."""
    http = HttpClient(timeout_s=ANSWER_WITHIN_S, body_max_bytes=BODY_MAX, reads_errors=True, keeps_alive=False)
    try:
        return await http.request("GET", url)
    finally:
        await http.close()
