"""The C library's allocator, and how it deals with the large buffers of a step."""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt."""


def keep_pages() -> None:
    """Keep freed memory in this process, for the next step's buffers; for programs that train and do little else.

    glibc maps each buffer above 32 MiB anew and unmaps it when it is freed, so that the kernel has to find and clear its
    pages every time, which for wide blocks takes longer than the arithmetic. What is kept is at most what the process
    has used at its peak. Other C libraries are left as they are, and so is glibc where variables `MALLOC_*` say how it
    should be.

    It cannot be undone: from the first call on, glibc no longer moves its thresholds with what a program frees.
    """
    libc, told = ctypes.CDLL(None), any(name.startswith("MALLOC_") for name in os.environ)
    if hasattr(libc, "mallopt") and not told:
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
