"""The registry of a run: the service can use it, and the checker reads commands by its ids."""

import asyncio

from chaos.faults.registry import Registry, foreign
from chaos.verdict import decoding
from order_service.kafka.registry_client import Ids, RegistryPolicy, SchemaRegistry, adopt
from order_service.kafka.topics import topic_names
from order_service.wire.avro import encode_command
from order_service.wire.schemas.catalogue import load
from tests.support.samples import create

VALUE = foreign(encode_command(create), 1) or b""


def ask(registry):
    return SchemaRegistry(RegistryPolicy(urls=(registry.url,), try_s=5.0, waits_s=()))


async def test_our_schemas_keep_their_ids_and_have_others_beside_them():
    catalogue = load()
    ours = set(catalogue.by_id)
    with Registry() as registry:
        async with ask(registry) as client:
            await adopt(client, topic_names().of, catalogue)
        assert set(catalogue.by_id) == ours
        async with Ids(ask(registry), catalogue) as ids:
            await ids.learn([VALUE, b"\0\0\0\0\7rest"])
    assert set(catalogue.by_id) == ours | {int.from_bytes(VALUE[1:5], "big")}


async def test_commands_are_decoded_when_it_answers_again():
    catalogue = load()
    with Registry() as registry:
        registry.fall_silent()
        async with Ids(ask(registry), catalogue) as ids:
            learning = asyncio.create_task(ids.learn_patiently([VALUE]))
            async with asyncio.timeout(20):
                while registry.held_up == 0:  # noqa: ASYNC110 - it counts in a thread of its own
                    await asyncio.sleep(0.01)
                registry.answer_again()
                await learning
    assert int.from_bytes(VALUE[1:5], "big") in catalogue.by_id


def test_the_checker_reads_a_command_by_a_foreign_id():
    ours, foreign_one = (decoding._decode_value(value) for value in (encode_command(create), VALUE))
    assert isinstance(ours, decoding.Command)
    assert ours == foreign_one
    assert foreign(encode_command(create), 0) == encode_command(create)
    others = [None, b"", b"{}", b"\0\0\0\0\7rest"]
    assert [foreign(value, 1) for value in others] == others
