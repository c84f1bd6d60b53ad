"""What runs inside a machine as its PID 1: the standard library only, Python 3.8 and newer."""
