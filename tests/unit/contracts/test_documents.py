"""The documents: every link leads to a file and a heading, and both lists of documents are complete."""

import re
from inspect import cleandoc

import pytest

from order_service import sdk
from order_service.contracts.blocks import anchor
from tests.support.service import ROOT

DOCUMENTS = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("[a-z]*/README.md")})
DEFINED = re.compile(r"^(?:async )?def (test_\w+)", re.MULTILINE)
TESTS = {
    test
    for folder in ("tests", "chaos")
    for file in (ROOT / folder).rglob("test_*.py")
    for test in DEFINED.findall(file.read_text(encoding="utf-8"))
}
LISTS = (ROOT / "llms.txt", ROOT / "docs" / "README.md")


def name(file):
    return str(file.relative_to(ROOT))


def prose(document):
    return re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)


def links(document):
    """Return file and heading of each link within the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(document))
    return [target.partition("#")[::2] for target in targets if "://" not in target]


def anchors(document):
    return {anchor(heading.replace("`", "")) for heading in re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)}


@pytest.mark.parametrize("document", [*DOCUMENTS, LISTS[0]], ids=name)
def test_every_link_leads_to_a_file_and_a_heading(document):
    for path, heading in links(document):
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), path
        assert not heading or heading in anchors(file), f"{path}#{heading}"


@pytest.mark.parametrize("list_of_documents", LISTS, ids=name)
def test_a_list_of_documents_is_complete(list_of_documents):
    """Each decision is listed by the page of decisions, and each runbook by theirs."""
    listed = {(list_of_documents.parent / path).resolve() for path, _ in links(list_of_documents)}
    pages = {file for file in DOCUMENTS if not re.match(r"docs/(decisions/\d|operations/runbooks/O)", name(file))}
    assert pages - listed <= {list_of_documents}


def test_the_readme_has_the_program_of_the_sdk_s_docstring():
    """Another test runs the one in the docstring."""
    [program] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    description = sdk.__doc__ or ""
    example = description[description.index("    import asyncio") : description.index("There are two ways")]
    assert program == cleandoc("\n" + example) + "\n"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_each_test_that_a_document_names_exists(document):
    text = document.read_text(encoding="utf-8")
    paths = re.findall(r"`(tests/[\w/.]+)`", text)
    assert [path for path in paths if not ((ROOT / path).exists() or (document.parent / path).exists())] == []
    assert set(re.findall(r"`(test_\w+)`", text)) <= TESTS


def test_each_safeguard_names_a_test_that_exists():
    named = re.findall(r"\| `([\w/]+\.py)`: `(test_\w+)` \|", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))
    assert len(named) > 40
    for path, test in named:
        assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), path
