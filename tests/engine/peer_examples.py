# SPDX-License-Identifier: Apache-2.0
"""One example, or more, of every control message."""

from __future__ import annotations

from parmig.engine.messages import peer_messages as m
from parmig.engine.messages.digest_messages import Digested, DigestRequest, Digests, DigestsRequest
from parmig.engine.messages.handover_messages import AskForGuest, GuestAnswer, Refused
from parmig.engine.reporting import error_reports
from parmig.engine.reporting.mismatch import Mismatch
from parmig.engine.reporting.report import ErrorReport
from parmig.errors import GuestError
from parmig.ram.blocks import GuestRange, RamBlock

BLOCK = RamBlock("pc.ram", 1 << 20, ranges=(GuestRange(0, 0, 1 << 20),))
CONFIGURE = m.Configure(
    parmig="0",
    kind="synthetic",
    machine="synthetic-1",
    blocks=(BLOCK,),
    allocated_bytes=4096,
    workers=2,
    transport="zmq",
    codec="none",
    batch_bytes=1 << 20,
    credit_bytes=6 << 20,
    region_pages=512,
    running=True,
    verify=False,
    switchover_timeout_ns=30 * 10**9,
    capabilities=("fence",),
    traits={"devices": ("a 'x'", "b"), "disks": ()},
    check=True,
)
EXAMPLES: list[m.ControlMessage] = [
    CONFIGURE,
    m.Accept(
        "0",
        "qemu",
        "pc-q35-9.2",
        (BLOCK,),
        "lz4",
        bytes(16),
        m.DataEndpoint("", 1),
        (m.DataEndpoint("::1", 2),),
        ("credit",),
    ),
    Refused(ErrorReport(type="GuestError", message="died", phase="device")),
    AskForGuest(bytes(16)),
    GuestAnswer("there"),
    m.Refuse("no"),
    m.Checked((Mismatch("machine type", "a", "b", "start both with the same"), Mismatch("x", "", "", "y"))),
    DigestRequest(),
    Digested("abc"),
    DigestsRequest(-1, 0),
    DigestsRequest(3, 32768),
    Digests(-1, 0, bytes(16)),
    m.Goodbye("abc"),
    m.Release(7, "def"),
    m.Loaded(1, 2),
    m.HandOver(True),
    m.Resumed(3),
    m.Progressed("active", 2),
    m.Failure(error_reports.describe_error(GuestError("gone"), "pausing")),
    m.Goodbye(),
]
