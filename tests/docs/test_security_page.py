"""docs/security.md: each claim has a test, and the test exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "security.md").read_text(encoding="utf-8")
CLAIMS = re.findall(r"^\| (?!cannot|---)([^|]+) \| ([^|]*) \|$", PAGE, flags=re.MULTILINE)


def test_the_page_claims_something() -> None:
    assert len(CLAIMS) > 20


@pytest.mark.parametrize(("claim", "test"), CLAIMS)
def test_a_claim_has_its_test(claim: str, test: str) -> None:
    found = re.fullmatch(r"`(\S+\.py)::(test_\w+)`", test)
    assert found is not None, claim
    tree = ast.parse((TESTS / found[1]).read_text(encoding="utf-8"))
    assert found[2] in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, claim
