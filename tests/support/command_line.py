"""The command line in this process."""

import json
from unittest.mock import patch

from typer.testing import CliRunner

from order_service.cli import app


class CommandLine:
    """Runs `order-service` with an environment of its own; `json` gives the objects that it printed."""

    def __init__(self, environment):
        self.environment = environment

    def __call__(self, *arguments, code=0, stdin=None):
        result = self._run(arguments, stdin)
        assert result.exit_code == code, result.output
        return result

    def printed(self, *arguments):
        """Return what is printed, whatever the exit status."""
        return self._run(arguments).output

    def json(self, *arguments, code=0):
        return [json.loads(line) for line in self(*arguments, "--json", code=code).stdout.splitlines()]

    def _run(self, arguments, stdin=None):
        words = [str(part) for part in arguments]
        with patch("order_service.runtime.logs.configure"):  # the log of this process is that of all tests
            return CliRunner().invoke(app, words, env=self.environment, prog_name="cli", input=stdin)
