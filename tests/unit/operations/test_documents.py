"""The page about `verify` has a row for each kind of finding."""

from pathlib import Path

from order_service.operations.findings import KINDS, Kind

PAGE = Path(__file__).parents[3] / "docs" / "operations" / "verify.md"


def test_the_page_explains_every_kind_of_finding():
    rows = [line.split(" | ")[:2] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert rows == [[f"| `{kind}`", KINDS[kind]] for kind in Kind]
