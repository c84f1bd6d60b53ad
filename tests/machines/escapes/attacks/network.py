"""Sockets that reach out of a machine whose network is off, and what it shares with the host."""

from __future__ import annotations

import ctypes
import errno
import os
import socket

from .attempt import Bait, attempt, check, contains, libc, worked

USUAL_FAMILIES = {socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK}
MOST_FAMILIES = 64
"""Linux has 46."""

SCTP, DCCP, UDP_LITE, MPTCP = 132, 33, 136, 262
SECONDS = 2.0


@attempt
def connect_to_services_of_the_host(bait: Bait) -> object:
    def connect(address: str) -> None:
        socket.create_connection((address, bait.port), SECONDS).close()

    return worked({address: lambda address=address: connect(address) for address in bait.addresses})


@attempt
def connect_to_an_abstract_socket_of_the_host(bait: Bait) -> object:
    return worked({"stream": lambda: socket.socket(socket.AF_UNIX).connect("\0" + bait.abstract)})


@attempt
def see_sockets_of_the_host(bait: Bait) -> object:
    with open("/proc/net/unix") as names, open("/proc/net/tcp") as ports:
        return bait.abstract in names.read() or f":{bait.port:04X} " in ports.read()


@attempt
def open_sockets_of_unusual_families(bait: Bait) -> object:
    """Some go round the network namespace, to the hypervisor among others; all load modules."""
    found: list[int] = []
    for family in set(range(MOST_FAMILIES)) - USUAL_FAMILIES:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
            try:
                socket.socket(family, kind).close()
            except OSError as error:
                if error.errno == errno.EAFNOSUPPORT:
                    continue
            found.append(family)
    return found


@attempt
def open_sockets_of_unusual_protocols(bait: Bait) -> object:
    """What the kernel would load a module for, or let nobody but root use."""
    inet = {
        "sctp": (socket.SOCK_STREAM, SCTP),
        "dccp": (6, DCCP),
        "udp lite": (socket.SOCK_DGRAM, UDP_LITE),
        "mptcp": (socket.SOCK_STREAM, MPTCP),
        "raw": (socket.SOCK_RAW, socket.IPPROTO_RAW),
        "raw icmp": (socket.SOCK_RAW, socket.IPPROTO_ICMP),
    }
    netlink = {"audit": 9, "netfilter": 12, "events": 15, "generic": 16, "crypto": 21}
    variants = {name: (socket.AF_INET, *about) for name, about in inet.items()}
    variants |= {name: (socket.AF_NETLINK, socket.SOCK_RAW, n) for name, n in netlink.items()}
    return worked({name: lambda about=about: socket.socket(*about).close()
                   for name, about in variants.items()})  # fmt: skip


@attempt
def add_a_network_device(bait: Bait) -> object:
    header = (32).to_bytes(4, "little") + (16).to_bytes(2, "little") + (0x605).to_bytes(2, "little")
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as link:
        link.sendall(header + bytes(24))  # RTM_NEWLINK, with an acknowledgement
        answer = link.recv(4096)
    number = -int.from_bytes(answer[16:20], "little", signed=True)
    if number:
        raise OSError(number, os.strerror(number))
    return True


@attempt
def share_memory_with_the_host(bait: Bait) -> object:
    key, number = bait.shared_memory

    def attach() -> bool:
        libc.shmat.restype = ctypes.c_void_p
        return libc.shmat(number, None, 0) != ctypes.c_void_p(-1).value

    return worked({"by key": lambda: check(libc.shmget(key, 0, 0))}) or attach()


@attempt
def find_named_shared_memory_of_the_host(bait: Bait) -> object:
    here = [f"/dev/shm/{name}" for name in os.listdir("/dev/shm")]
    return contains(bait.secret, here)


@attempt
def use_a_message_queue_of_the_host(bait: Bait) -> object:
    name = f"/{bait.abstract}".encode()
    return check(libc.mq_open(name, os.O_RDONLY | os.O_NONBLOCK)) >= 0
