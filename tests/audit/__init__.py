"""Tools that look for faults in a server, let loose on this one: `python -m audit`."""
