"""Memory that the process keeps: seen from its page faults, in a process of its own, since the choice is for good."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, statistics, sys
import torch
from lorasmith.ops.allocation import keep_freed_blocks

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "keep":
    assert keep_freed_blocks()
print(statistics.median(faults() for _ in range(9)))
"""


def faults(choice):
    done = subprocess.run([sys.executable, "-c", PROGRAM, choice], capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep freed memory")
def test_a_block_that_was_freed_is_used_again_without_page_faults():
    # of nine times 64 MiB; the heap may move once or twice before it is large enough
    assert faults("keep") <= min(16, faults("leave") // 4)
