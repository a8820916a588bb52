"""The schema registry of a run: it has our schemas under our ids, and each again under ids that no worker has met.

It answers what the service asks of Confluent's API. While it is silent it takes requests and answers none.
"""

import json
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Self

from chaos.verdict.decoding import FOREIGN, SCHEMAS, released_id

SILENT_MAX_S: Final = 120.0
"""How long a request is held up at most, so that no thread is left behind."""
UNKNOWN: Final = {"error_code": 40403, "message": "not found"}
TEXTS: Final = {
    int(schema_id): (SCHEMAS / about["file"]).read_text()
    for schema_id, about in json.loads((SCHEMAS / "ids.json").read_text()).items()
}


def foreign(value: bytes | None, number: int) -> bytes | None:
    """Return a value under the foreign id of its schema with this number; one that is not Avro stays as it is."""
    if value is None or len(value) < 5 or value[0] != 0:
        return value
    schema_id = int.from_bytes(value[1:5], "big")
    if schema_id not in TEXTS:
        return value
    return b"\0" + (schema_id + number * FOREIGN).to_bytes(4, "big") + value[5:]


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Show what went wrong, except for connections that the client has closed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Registry:
    """A registry in threads of its own; `with` it. `held_up` counts the requests that came while it was silent."""

    def __init__(self) -> None:
        self.held_up = 0
        self._answers = threading.Event()
        self._answers.set()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def fall_silent(self) -> None:
        """Answer nothing until told to."""
        self._answers.clear()

    def answer_again(self) -> None:
        """Answer, also what was asked meanwhile."""
        self._answers.set()

    @property
    def is_silent(self) -> bool:
        """Whether it answers nothing."""
        return not self._answers.is_set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, name="registry", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.answer_again()
        self._server.shutdown()
        self._server.server_close()

    def _handler(registry) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - its handler has a self, too
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                """Answer which schema an id stands for, and what a new version in a subject may change."""
                _, asked_for, name = self.path.rsplit("/", 2)
                if asked_for == "config":
                    self._say({"compatibilityLevel": "FULL_TRANSITIVE"})
                else:
                    text = TEXTS.get(released_id(int(name)))
                    self._say(None if text is None else {"schema": text})

            def do_POST(self) -> None:
                """Answer by which id a subject has a schema."""
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["schema"]
                self._say(next({"id": schema_id} for schema_id, text in TEXTS.items() if text == asked))

            def _say(self, answer: dict[str, Any] | None) -> None:
                if registry.is_silent:
                    registry.held_up += 1
                    registry._answers.wait(SILENT_MAX_S)
                body = json.dumps(answer or UNKNOWN).encode()
                with suppress(ConnectionError):  # who asked has asked again meanwhile
                    self.send_response(200 if answer else 404)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        return Handler
