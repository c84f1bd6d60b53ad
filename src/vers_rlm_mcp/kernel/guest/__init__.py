"""The half of the kernel that runs in the machine.

Sent there as a zip together with `wire`, and run by whatever Python the machine has: standard
library only, syntax and library of Python 3.8, and few imports before the first cell, since each
one delays the start of every kernel.

    attach     the program: finds the machine's kernel or starts it, and hands it its pipes
    service    the kernel: performs the host's requests, one at a time, on the main thread
    link       frames to and from the host that is attached
    capture    what is written to standard output and error, by whomever
    cells      compiles and runs a cell, echoes, formats errors
    functions  what cells can call: exec, files, machines, sub-models, FINAL
    commands   shell commands in this machine
    values     Python values as JSON
    variables  inputs in, listings out, and saving across a copy of the disk
"""
