"""The code of a machine's PID 1: the standard library only, for Python 3.8 and newer."""
