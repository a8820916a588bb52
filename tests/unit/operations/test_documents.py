"""The pages about `verify` and `why` have a row for each kind of finding and each state."""

from pathlib import Path

from order_service.operations.verify.findings import KINDS, Kind
from order_service.operations.why.order_story import STATES, CommandState

PAGES = Path(__file__).parents[3] / "docs" / "operations"


def rows(page):
    """Return the first two cells of each row of a page that begins with a word of the code."""
    return [line.split(" | ")[:2] for line in (PAGES / page).read_text().splitlines() if line.startswith("| `")]


def test_the_page_explains_every_kind_of_finding():
    assert rows("verify.md") == [[f"| `{kind}`", KINDS[kind]] for kind in Kind]


def test_the_page_explains_every_state_of_a_command():
    states = {cell.strip("| `"): meaning for cell, meaning in rows("why.md")}
    assert {state: states.get(state) for state in CommandState} == STATES
