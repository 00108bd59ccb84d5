"""Holds back every packet that a network namespace sends to some addresses: what ``netem`` does, for kernels without it.

A program of its own (``python delay.py SECONDS LINK ADDRESS...``), run inside the namespace, that imports nothing but the standard
library: routes to the addresses lead into a TUN device, and what comes out of it goes to the link by a raw socket, later.
"""

from __future__ import annotations

import collections
import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import time

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_NAME = "penstock-delay"
_LARGEST = 65_536  # bytes of a packet
_MOST = 20_000  # packets that are held at once: of more the oldest go early


def main() -> None:
    delay, link, addresses = float(sys.argv[1]), sys.argv[2], sys.argv[3:]
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH", _NAME.encode(), _IFF_TUN | _IFF_NO_PI))
    out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    out.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode())
    out.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    own = _own(link)
    subprocess.run(["ip", "link", "set", _NAME, "up"], check=True)
    for address in addresses:
        subprocess.run(["ip", "route", "replace", f"{address}/32", "dev", _NAME, "src", own], check=True)
    print("ready", flush=True)
    _forward(tun, out, delay)


def _own(link: str) -> str:
    shown = subprocess.run(["ip", "-4", "-o", "addr", "show", "dev", link], check=True, capture_output=True, text=True)
    return shown.stdout.split(" inet ")[1].split("/")[0]


def _forward(tun: int, out: socket.socket, delay: float) -> None:
    held: collections.deque[tuple[float, bytes]] = collections.deque()
    poll = select.poll()
    poll.register(tun, select.POLLIN)
    while True:
        pause = max(0.0, held[0][0] - time.monotonic()) if held else 1.0
        poll.poll(pause * 1e3)
        try:
            while True:
                packet = os.read(tun, _LARGEST)
                if packet[0] >> 4 == 4:  # the device is offered IPv6's own chatter too
                    held.append((time.monotonic() + delay, packet))
        except BlockingIOError:
            pass
        now = time.monotonic()
        while held and (held[0][0] <= now or len(held) > _MOST):
            _send(out, held.popleft()[1])


def _send(out: socket.socket, packet: bytes) -> None:
    try:
        out.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))
    except OSError:  # the link is down or full: a packet is lost
        return


if __name__ == "__main__":
    main()
