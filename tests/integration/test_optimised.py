"""`python -O`, which leaves out asserts, computes the same bits: no assert of ours does any work."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.integration.launching import ROOT, environment
from tests.integration.optimised import RUNS
from tests.integration.test_processes import results


@pytest.mark.slow
def test_without_asserts_nothing_changes(tmp_path: Path) -> None:
    """Losses, weights and statistics of seven kinds of run, and what a block keeps when scalars are lost."""
    said, found = {}, {}
    for options in ((), ("-O",)):
        folder = tmp_path / "-".join(("python", *options))
        folder.mkdir()
        command = [sys.executable, *options, str(ROOT / "tests/integration/optimised.py"), str(folder)]
        done = subprocess.run(command, env=environment(), check=False, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        said[options], found[options] = json.loads(done.stdout.splitlines()[-1]), results(folder, RUNS)
    assert [each["asserts"] for each in said.values()] == [True, False]
    assert all(each["in flight"] == [[0, 1, 2], [1, 2], [2]] for each in said.values())
    for name in RUNS:
        whole, other = (arrays[name] for arrays in found.values())
        assert whole.keys() == other.keys() and whole
        assert not [key for key, value in whole.items() if not np.array_equal(value, other[key])], name
