"""Each claim of docs/security.md names tests that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text()
LINK = re.compile(r"\[`(test_\w+)`\]\(\.\./(tests/[\w/]+\.py)\)")
MOST_WORDS = 850


def claims(page: str) -> list[str]:
    """Return the items of lists, and the rows of tables without the two of the heading."""
    items = re.findall(r"^[*-] .*(?:\n  .*)*", page, re.MULTILINE)
    tables = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    return [*items, *(row for table in tables for row in table.splitlines()[2:])]


def test_each_claim_names_a_test() -> None:
    found = claims(PAGE)
    assert len(found) > 20
    assert not [claim for claim in found if not LINK.search(claim)]


@pytest.mark.parametrize(("name", "path"), sorted(set(LINK.findall(PAGE))))
def test_each_test_exists(name: str, path: str) -> None:
    tree = ast.parse((ROOT / path).read_text())
    assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


def test_no_other_form_of_a_link_hides_a_test() -> None:
    assert len(LINK.findall(PAGE)) == len(re.findall(r"test_\w+`", PAGE)) == PAGE.count("](../tests/")


def test_the_page_is_short() -> None:
    assert len(PAGE.split()) < MOST_WORDS


def test_claims_are_found() -> None:
    page = "text\n* one\n  goes on\n* two\n\n| a | b |\n|---|---|\n| c | d |\n| e | f |\n"
    assert claims(page) == ["* one\n  goes on", "* two", "| c | d |", "| e | f |"]
