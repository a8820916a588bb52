"""What is made from the source is kept with it, and is what the source makes now."""

import re

import pytest

from order_service.contracts.__main__ import FILES
from order_service.contracts.source import Source
from tests.support.service import ROOT


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_in_the_checkout_is_the_one_that_the_code_makes(file):
    assert file.read_text(encoding="utf-8") == FILES[file](Source()), "run `make contracts`"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_byte_of_a_file_is_invisible(file):
    assert re.fullmatch(r"[\n -~]*", file.read_text(encoding="utf-8"))


def test_the_lock_of_the_check_names_no_host_to_fetch_from():
    lock = (ROOT / "tests" / "end_to_end" / "asyncapi" / "package-lock.json").read_text()
    assert '"integrity": "sha512-' in lock
    assert '"resolved"' not in lock
