"""The framing, by the name that the guest knows it by: in a machine, the module itself is here."""

from vers_rlm_mcp.machines.daemon.guest.wire import (
    MAX_HEADER,
    MAX_PAYLOAD,
    MAX_VALUES,
    Decoder,
    Frame,
    FrameError,
    dump,
    encode,
    load,
)

__all__ = [
    "MAX_HEADER",
    "MAX_PAYLOAD",
    "MAX_VALUES",
    "Decoder",
    "Frame",
    "FrameError",
    "dump",
    "encode",
    "load",
]
