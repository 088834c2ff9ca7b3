"""The experiment that `study frontier` recommends, in eight processes, against two backward passes in one."""

from pathlib import Path

import numpy as np
import pytest

from tests.integration.test_processes import COMMON, STEPS, recorded


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_eight_processes_are_the_oracle(tmp_path: Path) -> None:
    """Every loss of 20 steps, with weights that come down twice, and every final weight, in float64 and lock-step."""
    keys = ["experiment=frontier", "data=digits", *COMMON, "dtype=float64", "window=1", "optim.lr=0.01"]
    many = recorded(tmp_path / "many", 8, {"frontier": keys})["frontier"]
    one = recorded(tmp_path / "one", 1, {"frontier": [*keys, "tangents=oracle"]})["frontier"]
    assert many.keys() == one.keys() and len(many["loss/True/7"]) == STEPS
    for name, value in one.items():
        np.testing.assert_allclose(many[name], value, rtol=1e-7, atol=1e-9, err_msg=name)
