"""Every test that docs/reference/guarantees.md names is there, and CI runs it unless the page says `(long)`."""

import ast
import re

import pytest

from tests.integration.launching import ROOT

PAGE = (ROOT / "docs" / "reference" / "guarantees.md").read_text()
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(test_\w+)`(?:( \(long\))|)", PAGE)))


def test_rows_are_read() -> None:
    assert len(NAMED) > 30


@pytest.mark.parametrize("file, test, mark", NAMED)
def test_exists(file: str, test: str, mark: str) -> None:
    tree = ast.parse((ROOT / "tests" / file).read_text())
    (found,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == test]
    assert any(ast.unparse(each) == "pytest.mark.long" for each in found.decorator_list) == bool(mark)
