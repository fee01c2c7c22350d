"""How the process holds on to memory."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Has the memory of freed tensors used again, rather than given back to the system.

    By default glibc maps each tensor above 32 MiB anew, so that the kernel has to find and clear
    every page of it; for a batch of full-resolution targets this takes longer than computing
    them, on virtual machines twice as long. Memory then stays at its peak. Call it early, before
    other threads are at work.

    Returns:
        Whether the C library knows these settings; False, and nothing done, elsewhere.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    # One arena: the others are made of pieces of 64 MiB, and map what is larger.
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, _LARGEST), (_M_TRIM_THRESHOLD, _LARGEST))
    return all([mallopt(option, value) == 1 for option, value in settings])
