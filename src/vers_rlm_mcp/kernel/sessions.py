"""Jobs' processes, by the name that the guest knows them by: see `wire`."""

from vers_rlm_mcp.machines.daemon.guest.sessions import UNMARKED, bear, kill

__all__ = ["UNMARKED", "bear", "kill"]
