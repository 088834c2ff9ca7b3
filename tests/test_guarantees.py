"""Every test that docs/reference/guarantees.md names is there."""

import ast
import re

import pytest

from tests.integration.launching import ROOT

NAMED = sorted(
    set(re.findall(r"`([\w/]+\.py)::(test_\w+)`", (ROOT / "docs" / "reference" / "guarantees.md").read_text()))
)


def test_rows_are_read() -> None:
    assert len(NAMED) > 30


@pytest.mark.parametrize("file, test", NAMED)
def test_exists(file: str, test: str) -> None:
    tree = ast.parse((ROOT / "tests" / file).read_text())
    assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
