"""The protocol's own conformance suite against this server.

The suite wants to see tools, resources and prompts of its own, which stand here; they are mounted
on the server that everybody gets. `python -m conformance` runs it, `expected.yaml` says what is
expected to fail and why.
"""
