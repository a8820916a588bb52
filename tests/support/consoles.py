"""The consoles of a document: each line that begins with `$` is run, and must print what is shown under it."""

import re
import subprocess
from threading import Timer

from tests.support.service import ROOT

README, HTTP = ROOT / "README.md", ROOT / "docs" / "reference" / "http.md"
VARIES = re.compile(r"offset\":\d+|[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{32}|\d{4}-\d\d-\d\dT[\d:.]+Z")
VARYING = "\0"  # not `…`, which stands for any text


def block(document, section, language):
    text = document.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    return "".join(re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL))


def steps(document, section):
    """Return each command of a section's consoles with the output shown under it."""
    return _steps(block(document, section, "console"))


def _steps(text):
    parts = re.split(r"^\$ ", text, flags=re.MULTILINE)
    return [tuple(part.partition("\n")[::2]) for part in parts if part]


def page_steps(document):
    """Return each command of all consoles of a document, in order, with the output shown under it."""
    text = "".join(re.findall(r"```console\n(.*?)```", document.read_text(encoding="utf-8"), flags=re.DOTALL))
    return _steps(text)


def assert_shown(output, shown, command):
    """Check that a command printed what is shown. In a shortened output, `…` stands for what was left out."""
    actual, expected = (VARIES.sub(VARYING, text.rstrip("\n")) for text in (output, shown))
    if "…" in shown:
        assert re.fullmatch(".*".join(map(re.escape, expected.split("…"))), actual), f"{command}\n{actual}"
    else:
        assert actual == expected, command


def output_of(arguments, environment):
    """Return what a command prints; of `tail`, which does not end by itself, the first line."""
    is_endless = "tail" in arguments
    with subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        deadline = Timer(60, process.kill)
        deadline.start()
        try:
            return process.stdout.readline() if is_endless else process.stdout.read()
        finally:
            deadline.cancel()
            if is_endless:
                process.kill()
