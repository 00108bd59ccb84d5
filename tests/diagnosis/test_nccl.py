"""What NCCL's own lines tell of the network that it uses. The lines are as versions 2.14 to 2.27 write them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.diagnosis.nccl import Transport, transport
from penstock.diagnosis.state import LogLine

HEAD = "node-0:4242:4301 [0] NCCL INFO "


def told(*lines: str) -> Transport:
    return transport([LogLine(0.0, HEAD + line) for line in lines])


def test_infiniband_with_gpudirect() -> None:
    found = told(
        "NCCL version 2.21.5+cuda12.4",
        "NET/IB : Using [0]mlx5_0:1/IB [1]mlx5_1:1/IB [RO]; OOB eth0:10.0.0.1<0>",
        "Using network IB",
        "Channel 00/0 : 7[7] -> 8[0] [receive] via NET/IB/0/GDRDMA",
        "Channel 00/0 : 0[0] -> 8[0] [send] via NET/IB/0/GDRDMA/Shared",
        "Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM/read",
    )
    assert (found.version, found.network, found.gdr, found.sockets) == ("2.21.5", "IB", True, False)
    assert found.count("P2P") == 1


def test_infiniband_without_gpudirect() -> None:
    found = told(
        "Using network IB",
        "NET/IB : GPU Direct RDMA Disabled for HCA 0 'mlx5_0'",
        "Channel 00/0 : 7[7] -> 8[0] [receive] via NET/IB/0",
        "Channel 01/0 : 0[0] -> 8[0] [send] via NET/IB/0",
    )
    assert found.gdr is False
    assert not found.sockets


def test_sockets_instead() -> None:
    found = told(
        "NET/IB : No device found.",
        "NET/Socket : Using [0]eth0:10.0.0.1<0>",
        "Using network Socket",
        "Channel 00 : 1[b000] -> 0[a000] [receive] via NET/Socket/0",
    )
    assert found.sockets
    assert found.no_card
    assert found.gdr is None


def test_the_names_of_newer_versions() -> None:
    assert told("Initialized NET plugin Socket", "Assigned NET plugin Socket to comm").sockets
    assert told("Initialized NET plugin IB", "Assigned NET plugin IB to comm").network == "IB"


def test_variables_that_nccl_took_over() -> None:
    found = told("NCCL_P2P_DISABLE set by environment to 1.", "NCCL_ALGO set by environment to Ring")
    assert found.env == (("NCCL_ALGO", "Ring"), ("NCCL_P2P_DISABLE", "1"))


def test_nothing_said_is_nothing_known() -> None:
    assert transport([LogLine(0.0, "step 1 loss 2.3")]) == Transport()


@given(st.lists(st.text(max_size=200), max_size=20))
def test_any_line_is_read(lines: list[str]) -> None:
    assert told(*lines).gdr in {None, True, False}
