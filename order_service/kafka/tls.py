"""TLS to Kafka: the CAs that verify the brokers, and the client certificate. Changed files are read again."""

import ssl
from pathlib import Path

from order_service.errors import KafkaAwayError
from order_service.settings import Settings
from order_service.tls_files import FileContext


def tls(settings: Settings) -> ssl.SSLContext | None:
    """Return the TLS context, or None without TLS. It trusts the system's CAs, or those of `ORDERS_KAFKA_SSL_CAFILE`.

    It always verifies the host names of brokers. Raises KafkaAwayError if a file cannot be used.
    """
    if not settings.kafka_security_protocol.endswith("SSL"):
        return None
    return FileContext([*_files(settings).values()], lambda: _read(settings))


def cause_of(error: Exception) -> str:
    """Return what OpenSSL or the system says of an error, in words."""
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLCertVerificationError):
        return (error.reason or "unknown reason").replace("_", " ").lower()
    return str(error)


def _files(settings: Settings) -> dict[str, Path | None]:
    return {
        "ORDERS_KAFKA_SSL_CAFILE": settings.kafka_ssl_cafile,
        "ORDERS_KAFKA_SSL_CERTFILE": settings.kafka_ssl_certfile,
        "ORDERS_KAFKA_SSL_KEYFILE": settings.kafka_ssl_keyfile,
    }


def _read(settings: Settings) -> ssl.SSLContext:
    """Return a context with the contents of the files. Raises KafkaAwayError if one of them cannot be used."""
    for setting, file in _files(settings).items():
        try:
            if file is not None:
                file.open("rb").close()  # OpenSSL does not say which one it cannot read
        except OSError as error:
            raise KafkaAwayError(f"the file {file} of {setting} cannot be read: {error.strerror}") from error
    try:
        context = ssl.create_default_context(cafile=settings.kafka_ssl_cafile)
    except OSError as error:  # includes ssl.SSLError
        file = settings.kafka_ssl_cafile
        why = f"the file {file} of ORDERS_KAFKA_SSL_CAFILE cannot be read: {cause_of(error)}"
        raise KafkaAwayError(why) from error
    certfile, keyfile = settings.kafka_ssl_certfile, settings.kafka_ssl_keyfile
    if certfile is not None:
        try:
            context.load_cert_chain(certfile, keyfile, lambda: _key_password(settings))
        except (OSError, ValueError) as error:
            raise KafkaAwayError(
                f"{certfile} of ORDERS_KAFKA_SSL_CERTFILE and {keyfile} of ORDERS_KAFKA_SSL_KEYFILE are not a "
                f"certificate and its key, both in PEM: {cause_of(error)}"
            ) from error
    return context


def _key_password(settings: Settings) -> str:
    """Return the password of an encrypted key: without this function, OpenSSL would ask the terminal."""
    if password := settings.kafka_ssl_key_password.get_secret_value():
        return password
    raise ValueError("the key is encrypted: set ORDERS_KAFKA_SSL_KEY_PASSWORD")
