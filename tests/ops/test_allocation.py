"""What becomes of freed memory, seen from outside: in processes of their own, since the choice is for good."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told what to do")

FAULTS = """
import resource, statistics, sys
import torch
from lorasmith.ops import allocation

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert sys.argv[1] == "leave" or getattr(allocation, sys.argv[1] + "_freed_blocks")()
print(statistics.median(faults() for _ in range(25)))
"""

GROWTH = """
import resource, sys
from pathlib import Path
import torch
from lorasmith.ops import allocation

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

assert getattr(allocation, sys.argv[1] + "_freed_blocks")()
before = resident()
kept = []
for _ in range(64):
    large = [torch.ones(2**20 // 4 * megabytes) for megabytes in (3, 5, 4, 7, 2)]
    # what outlives a layer comes between
    kept.append(torch.ones(2**20 // 4))
    del large
print((resident() - before) / 2**20)
"""


def printed(program, choice):
    done = subprocess.run([sys.executable, "-c", program, choice], capture_output=True, text=True, check=True)
    return float(done.stdout)


def test_a_kept_block_is_used_again_without_page_faults():
    # of 25 times 64 MiB; the heap moves some times before it is large enough
    assert printed(FAULTS, "keep") <= min(16, printed(FAULTS, "leave") // 4)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_returned_blocks_leave_no_holes():
    # 64 MiB live on, of 21 MiB more at once
    assert printed(GROWTH, "return") < 64 + 8


def test_the_last_choice_counts():
    program = FAULTS.replace("print(", "allocation.keep_freed_blocks()\nprint(")
    assert printed(program, "return") <= 16
