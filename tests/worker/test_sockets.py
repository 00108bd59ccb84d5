"""What TCP says of a process's connections."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
from collections.abc import Iterator

from penstock.worker import sockets
from penstock.worker.counting import Counts
from penstock.worker.sockets import LEAST, Peers


@contextlib.contextmanager
def pair(address: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server((address, 0)) as server:
        client = socket.create_connection(server.getsockname()[:2])
        peer, _ = server.accept()
        with client, peer:
            yield client, peer


def send(client: socket.socket, peer: socket.socket, size: int) -> None:
    sender = threading.Thread(target=client.sendall, args=(b"x" * size,))
    sender.start()
    left = size
    while left:
        left -= len(peer.recv(min(left, 1 << 20)))
    sender.join()


def test_what_was_sent_to_a_peer_and_how_long_an_answer_takes() -> None:
    peers = Peers()
    with pair("127.0.0.1") as (client, peer):
        numbers = [client.fileno(), peer.fileno(), 0]
        send(client, peer, LEAST - 1)
        assert peers.counters(numbers) == {}  # of rendezvous, as far as one can tell
        send(client, peer, LEAST)
        first = peers.counters(numbers)
        assert first["sent_bytes:127.0.0.1"] == 2 * LEAST - 1
        assert 0 < first["rtt_s:127.0.0.1"] < 1
        assert first["segments:127.0.0.1"] > 10
        assert first["resent:127.0.0.1"] == 0
        send(client, peer, LEAST)
        assert peers.counters(numbers)["sent_bytes:127.0.0.1"] == 3 * LEAST - 1
    assert peers.counters(numbers) == {}


def test_all_connections_to_a_peer_are_one() -> None:
    with pair("127.0.0.1") as (one, far), pair("127.0.0.1") as (other, there):
        send(one, far, LEAST)
        send(other, there, 2 * LEAST)
        found = Peers().counters([one.fileno(), other.fileno()])
        assert found["sent_bytes:127.0.0.1"] >= 3 * LEAST  # what had to be sent again is in it


def test_those_to_whom_most_was_sent_are_told_of() -> None:
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(pair(f"127.0.0.{n + 2}")) for n in range(sockets.PEERS + 2)]
        for n, (client, peer) in enumerate(opened):
            send(client, peer, LEAST + n)
        found = Peers().counters([client.fileno() for client, _ in opened])
    names = {name.partition(":")[2] for name in found}
    assert names == {f"127.0.0.{n + 2}" for n in range(2, sockets.PEERS + 2)}


def test_a_process_counts_its_peers() -> None:
    counts = Counts()
    with pair("127.0.0.1") as (client, peer):
        send(client, peer, LEAST)
        assert counts.read()["sent_bytes:127.0.0.1"] >= LEAST
        assert "127.0.0.1" in sockets.addresses()
    counts.close()


def test_an_address_is_written_as_its_peer_writes_it() -> None:
    """A socket for both kinds of addresses knows those of IPv4 by a longer name."""
    with (
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server,
        socket.create_connection(("127.0.0.1", server.getsockname()[1])) as client,
    ):
        peer, _ = server.accept()
        with peer:
            assert sockets.address(peer.fileno(), far=True) == "127.0.0.1"
            assert sockets.address(client.fileno(), far=False) == "127.0.0.1"


def test_what_is_no_tcp_is_left_alone() -> None:
    read, write = os.pipe()
    one, other = socket.socketpair()
    with one, other, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, socket.socket() as unbound:
        datagrams.connect(("127.0.0.1", 9))
        numbers = [read, write, 10_000, *(s.fileno() for s in (one, other, datagrams, unbound))]
        assert Peers().counters(numbers) == {}
        assert sockets.read(datagrams.fileno()) is None
        assert [sockets.socket_of(n) is None for n in numbers] == [True, True, True, False, False, False, False]
    os.close(read)
    os.close(write)


def test_another_librarys_socket_keeps_its_flags() -> None:
    socket.setdefaulttimeout(3.0)
    try:
        with pair("127.0.0.1") as (client, peer):
            client.setblocking(True)
            before = fcntl.fcntl(client.fileno(), fcntl.F_GETFL)
            Peers().counters([client.fileno(), peer.fileno()])
            assert fcntl.fcntl(client.fileno(), fcntl.F_GETFL) == before
    finally:
        socket.setdefaulttimeout(None)
