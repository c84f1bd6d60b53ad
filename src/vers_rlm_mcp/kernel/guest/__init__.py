"""The half of the kernel that runs in the machine.

Sent there as a zip together with `wire`, and run by whatever Python the machine has: standard
library only, syntax and library of Python 3.8, and few imports before the first cell, since each
one delays the start of every kernel.

    attach     the program: finds the machine's kernel or starts it, and hands it its pipes
    service    the kernel: performs the host's requests, one at a time, on the main thread
    link       frames to and from the host that is attached
    calls      calls from cells to the host
    capture    what is written to standard output and error, by whomever
    cells      compiles and runs a cell, echoes, formats errors
    workplace  the directory that cells work in
    functions  what cells can call: exec, files, machines, sub-models, FINAL
    commands   shell commands in this machine
    results    results that can be awaited
    values     Python values as JSON
    variables  inputs in, listings out, and saving for a copy of the disk
    pickles    the file that variables are saved in
"""
