"""Large buffers are mapped once, by the kernel's count of page faults."""

import platform
import subprocess
import sys

import pytest

from tests.integration.launching import environment

BUFFERS = """
import resource, sys, torch
from fgpipe.cluster.allocator import keep_pages
if sys.argv[1] == "kept":
    keep_pages()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(12):
    before = faults()
    for megabytes in (40, 100):
        torch.ones(megabytes << 18)
print(faults() - before)
"""
"""Prints the faults of the last of twelve steps with the same two buffers."""


def faults(how: str, **variables: str) -> int:
    command, variables = [sys.executable, "-c", BUFFERS, how], environment() | variables
    return int(subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_pages_are_kept() -> None:
    assert faults("as it is") > 70, "even with pages of 2 MiB; else this test shows nothing"
    assert faults("kept") < 10
    assert faults("kept", MALLOC_MMAP_THRESHOLD_="65536") > 70, "the user has said so"
