"""The commands that list the partitions where the views are stopped, and skip the record there."""

from typing import Annotated

import typer
from aiokafka.structs import TopicPartition

from order_service.cli import show
from order_service.cli.environment import read_settings
from order_service.cli.options import AsJson
from order_service.kafka.topics import topic_names

views = typer.Typer(
    no_args_is_help=True,
    help="""Show where the views are stopped, and skip the record there.

    A record that does not fit its order, or cannot be read, stops the views of its partition. The projector retries
    it every 5 seconds. If the record is good, a newer projector or a working schema registry is enough. `skip` passes
    over a record that cannot be repaired: its order then lacks this change. Later events of that order stop the
    partition again, unless the record was not an event of it.

    A partition whose log lost records is not retried. If the events lost their beginning, `skip` continues with the
    first event that exists. If a log lost its end, remove the views (the files views.db*, or the tables), and they are
    built again. After `skip` the partition stops again while the log is shorter than the position of the views;
    afterwards the records in between are missing.
    """,
)


@views.command("stopped")
def views_stopped(as_json: AsJson = False) -> None:
    """List the stopped partitions: the offset of the record, and why it does not fit.

    Exits with 1 if there are any, with 3 if the database holds no views that this version reads, and with 4 if the
    database cannot be used.
    """
    from order_service.views.queries import Views  # noqa: PLC0415 - other commands need no database
    from order_service.views.tables import database_of, open_views  # noqa: PLC0415 - likewise

    settings = read_settings()
    with open_views(database_of(settings), settings.database_schema) as engine:
        stopped = Views(engine, topic_names(settings.topic_prefix)).stopped_partitions()
    if as_json:
        for topic, partition, offset, reason in stopped:
            show.json_line({"topic": topic, "partition": partition, "offset": offset, "reason": reason})
    elif stopped:
        show.table(("topic", "partition", "offset", "reason"), stopped)
    else:
        typer.echo("no partition is stopped")
    raise typer.Exit(1 if stopped else 0)


@views.command("skip")
def views_skip(
    topic: Annotated[str, typer.Argument(help="The topic, as `views stopped` shows it.")],
    partition: Annotated[int, typer.Argument(min=0)],
    offset: Annotated[int, typer.Argument(min=0, help="The offset of the record to skip.")],
    as_json: AsJson = False,
) -> None:
    """Skip the record at which a partition is stopped. A running projector continues by itself.

    Exits with 1 if the partition is not stopped there, otherwise as `views stopped`.
    """
    from order_service.views.projector import Projection  # noqa: PLC0415 - other commands need no database
    from order_service.views.tables import database_of, open_views  # noqa: PLC0415 - likewise

    settings = read_settings()
    with open_views(database_of(settings), settings.database_schema, writes=True) as engine:
        projection = Projection(engine, topic_names(settings.topic_prefix))
        is_skipped = projection.skip(TopicPartition(topic, partition), offset)
    if not is_skipped:
        text = f"partition {partition} of {topic} is not stopped at offset {offset}"
        typer.echo(f"order-service: {text}: see `views stopped`", err=True)
        raise typer.Exit(1)
    if as_json:
        show.json_line({"skipped": {"topic": topic, "partition": partition, "offset": offset}})
    else:
        typer.echo(f"the views continue after offset {offset} of partition {partition} of {topic}")
