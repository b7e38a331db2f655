import os
import subprocess
import sys

import pytest

SIZE = 20 * 2**20
# How much more memory the C library holds (mallinfo2(3)) after a tensor came and went.
PROGRAM = f"""
import ctypes, sys
import torch
from harness.processor import keep_freed_memory

class Information(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
        "fordblks", "keepcost")]

def held():
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = Information
    information = mallinfo()
    return information.arena + information.hblkhd

if sys.argv[1] == "keep":
    keep_freed_memory()
before = held()
torch.ones({SIZE} // 4)
print(held() - before)
"""


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="needs glibc")
def test_freed_memory_stays_with_the_process():
    def held(choice: str) -> int:
        command = [sys.executable, "-c", PROGRAM, choice]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert held("keep") >= 0.9 * SIZE
    assert held("give back") < 0.5 * SIZE
