"""The connection of a client: the settings from the environment, and the arguments that override them."""

from order_service.settings import Settings


def settings_for(servers: str, settings: Settings | None) -> Settings:
    """Return `settings`, or else those of the environment; `servers` ("host:port,…") overrides both."""
    base = settings or Settings()
    return base.model_copy(update={"kafka_bootstrap_servers": servers}) if servers else base
