"""What runs in a machine. Standard library only, Python 3.8 and newer."""
