"""Clients of others, each in an environment of its own: `python -m real_clients` tries them."""
