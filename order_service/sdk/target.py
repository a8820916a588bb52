"""Which service is meant: the settings of the environment, and what the caller says instead."""

from order_service.settings import Settings


def settings_for(servers: str, settings: Settings | None) -> Settings:
    """Take the given settings, else those of the environment; `servers` ("host:port,…") goes over both."""
    chosen = settings or Settings()
    return chosen.model_copy(update={"kafka_bootstrap_servers": servers}) if servers else chosen
