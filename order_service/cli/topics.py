"""The commands that create the topics, check them, and print them for other tools."""

import asyncio
from typing import Annotated

import typer

from order_service.cli import show
from order_service.cli.environment import read_settings
from order_service.cli.options import AsJson
from order_service.kafka.connection import ask_admin
from order_service.kafka.topic_formats import TopicFormat, format_topics
from order_service.kafka.topics import (
    Comparison,
    compare_topics,
    create_topics,
    fix_lines,
    replicas_for,
    topic_configs,
    topic_names,
    topic_specs,
)
from order_service.settings import Settings

topics = typer.Typer(
    no_args_is_help=True, help="Create the topics, check their configuration, or print them for other tools."
)


@topics.command("create")
def topics_create(as_json: AsJson = False) -> None:
    """Create missing topics. The others stay unchanged; exit with 13 if one of them differs."""
    settings = read_settings()
    created = asyncio.run(_create(settings))
    for name in topic_configs(topic_names(settings.topic_prefix)):
        state = "created" if name in created else "exists"
        if as_json:
            show.json_line({"topic": name, "state": state})
        else:
            typer.echo(f"{state:<8} {name}")
    compared = asyncio.run(_compare(settings))
    if as_json and (compared.faults or compared.risks):
        show.json_line(_as_json(settings, compared))
    elif not as_json:
        _echo(settings, compared)
    raise typer.Exit(13 if compared.faults else 0)


@topics.command("check")
def topics_check(as_json: AsJson = False) -> None:
    """Check the topics. If one falls short, print the commands that repair it and exit with 13."""
    settings = read_settings()
    compared = asyncio.run(_compare(settings))
    if as_json:
        show.json_line(_as_json(settings, compared))
    else:
        _echo(settings, compared)
        if not compared.faults:
            typer.echo(f"all topics are as expected, with {settings.partitions} partitions each")
    raise typer.Exit(13 if compared.faults else 0)


def _as_json(settings: Settings, compared: Comparison) -> dict[str, object]:
    faults = compared.faults
    texts = [fault.text for fault in faults]
    risks = [risk.text for risk in compared.risks]
    return {"ok": not faults, "faults": texts, "fix": fix_lines(faults, settings), "risks": risks}


def _echo(settings: Settings, compared: Comparison) -> None:
    """Write the differences to stderr, and the commands that repair them to stdout; for risks, as comments."""
    for risk in compared.risks:
        typer.echo(f"order-service: warning: {risk.text}", err=True)
    for fault in compared.faults:
        typer.echo(f"order-service: {fault.text}", err=True)
    for line in [*fix_lines(compared.faults, settings), *(f"# {risk.line}" for risk in compared.risks if risk.line)]:
        typer.echo(line)


@topics.command("print")
def topics_print(
    form: Annotated[
        TopicFormat,
        typer.Option(
            "--format", help="Lines for Kafka's own tools, or resources for Strimzi or for Terraform's Mongey/kafka."
        ),
    ] = TopicFormat.KAFKA_CONFIGS,
    replicas: Annotated[int, typer.Option(min=1, max=32_767, help="The replicas of each topic.")] = replicas_for(3),
    cluster: Annotated[str, typer.Option(help="The Kafka resource that Strimzi's topics belong to.")] = "my-cluster",
    as_json: AsJson = False,
) -> None:
    """Print the topics for those who create them by other means. Kafka is not asked."""
    settings = read_settings(for_local=False)
    specs = topic_specs(settings, replicas)
    if as_json:
        for spec in specs:
            show.json_line(spec)
    else:
        typer.echo(format_topics(specs, form, settings, cluster))


async def _create(settings: Settings) -> list[str]:
    return await ask_admin(settings, lambda admin: create_topics(admin, settings))


async def _compare(settings: Settings) -> Comparison:
    return await ask_admin(settings, lambda admin: compare_topics(admin, settings), patience_s=5.0)
