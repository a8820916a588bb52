"""What the check of the language finds. `make check` runs it on the project."""

import pytest

from tools.check_language import findings_in_python, findings_in_text

MODULE = '''"""Nobody is at fault, but %s is."""

def name() -> str:
    """%s the name of it."""
    return "x"  # %s
'''


@pytest.mark.parametrize(
    ("filled", "phrases"),
    [
        pytest.param(("a timer", "Return", "a comment"), [], id="plain English"),
        pytest.param(("whoever", "Return", "in vain"), [("whoever", 1), ("in vain", 5)], id="docstring and comment"),
        pytest.param(("a timer", "Give", "None is code"), [("Give", 4)], id="the first word of a function's docstring"),
    ],
)
def test_a_phrase_to_avoid_is_found_in_a_module(filled, phrases):
    assert [(found.phrase, found.line) for found in findings_in_python("m.py", MODULE % filled)] == phrases


def test_a_phrase_to_avoid_is_found_in_a_formatted_string():
    source = 'raise ValueError(f"asked {name} in vain")\n'
    assert [(found.phrase, found.line) for found in findings_in_python("m.py", source)] == [("in vain", 1)]


def test_a_string_of_one_word_is_a_value():
    assert not list(findings_in_python("m.py", 'ACTOR = "nobody"\n'))


def test_a_phrase_to_avoid_is_found_in_a_document_outside_of_code():
    text = "Read `in vain` anew.\n```sh\necho anew\n```\nBy then, at all costs."
    assert [(found.phrase, found.line) for found in findings_in_text("d.md", text)] == [("anew", 1), ("at all", 5)]
