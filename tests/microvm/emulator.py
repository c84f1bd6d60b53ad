"""QEMU without a defect that stops micro-VMs dead.

When a hypervisor hands an interrupt to its machine, `helper_vmrun` of target/i386/tcg/sysemu/
svm_helper.c (7.2 to 10.0 at least) delivers it, and leaves its number behind in `exception_index`.
If QEMU's loop is left before the machine's next exit, it takes that for news and delivers the
interrupt again: in the midst of its own handler, with interrupts off. The machine's kernel then
waits for ever for a lock that it holds itself. Nothing needs the instruction that stores it there.
"""

from __future__ import annotations

import re
from typing import Final

STORE: Final = re.compile(
    rb"(\x41\x0f\xb6\xf4"  # movzbl %r12b,%esi: the number of the interrupt
    rb"\x44\x89\xab....)"  # mov %r13d,error_code(%rbx)
    rb"\x89\xb3...."  # mov %esi,exception_index(%rbx)
    rb"(\xc7\x83....\0{4}"  # movl $0,exception_is_int(%rbx)
    rb"\x48\xc7\x83....\xff{4})",  # movq $-1,exception_next_eip(%rbx)
    re.DOTALL,
)
NOTHING: Final = bytes.fromhex("660f1f440000")
"""An instruction as long as the store, without effect."""


def mended(program: bytes) -> bytes:
    """The program of QEMU without the store; unchanged where that is not found, which is said."""
    changed, count = STORE.subn(lambda found: found[1] + NOTHING + found[2], program)
    if count != 1:
        print("This build of QEMU is not known, and left as it is: micro-VMs may hang in it.")
        return program
    return changed
