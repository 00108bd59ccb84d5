"""Which checks there are: another one is a file in this folder, and a line here."""

from __future__ import annotations

from penstock.health.checks.clock import Clock
from penstock.health.checks.dcgmi import Dcgmi
from penstock.health.checks.fio import Fio
from penstock.health.checks.nccl import AllReduce
from penstock.health.checks.nvbandwidth import NvBandwidth
from penstock.health.checks.spec import Check

ALL: tuple[Check, ...] = (Clock(), Fio(), Dcgmi(), NvBandwidth(), AllReduce())
BY_NAME = {check.name: check for check in ALL}
