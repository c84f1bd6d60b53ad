"""The half of the kernel that runs in the machine.

It is sent there as a zip together with `wire` and run by the machine's own Python: standard library
only, syntax and library of Python 3.8, and few imports before the first cell, since each one delays
the start of every kernel.

    attach       the program: finds or starts the machine's kernel and hands it its pipes
    service      the kernel: performs the host's requests, one at a time, on the main thread
    frames       the kinds of frames between it and its host
    host_link    frames to and from the attached host
    host_calls   calls from cells to the host
    capture      what is written to standard output and error: by Python, C code and children
    cells        compiles and runs a cell, echoes, formats errors
    compiler     changes the code of cells, so that results can be awaited
    concurrency  what that code calls
    sources      the source of classes that cells make
    workplace    the directory that cells work in
    functions    what cells can call: exec, files, sub-models, FINAL, and what the host declares
    commands     shell commands in this machine
    python_or_shell  tells Python from shell commands
    results      results that are more than plain values
    json_values  Python values as JSON
    variables    inputs in, listings out, and saving for a copy of the disk
    pickles      the file that variables are saved in
"""
