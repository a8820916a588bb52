"""Sending one command and reading its outcome: an event, a rejection, a dead letter, or no new record."""

from order_service.domain.messages import Command
from order_service.sdk.sending import Sender, Sent
from order_service.settings import Settings
from order_service.wire.avro import encode_command
from order_service.wire.commands import encode_json_command


async def send(settings: Settings, command: Command, *, as_avro: bool, wait_s: float) -> Sent:
    """Send a command and wait for its outcome, up to `wait_s` seconds (0: do not wait)."""
    async with Sender(settings, encode=encode_command if as_avro else encode_json_command) as sender:
        return await sender.send(command, wait_s)
