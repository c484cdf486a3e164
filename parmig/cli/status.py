# SPDX-License-Identifier: Apache-2.0
"""``parmig status``: what runs here and how far it is; or who owns which guest, by the records of this host."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Annotated, TypeVar

import msgspec
import typer

from parmig.cli import options as o
from parmig.cli.output import print_json, showing_errors
from parmig.cli.running_commands import print_details, print_running
from parmig.cli.tables import output_console, plain_table
from parmig.engine.handover.resume_point import resumable_sessions
from parmig.engine.records.handover_record import HandOverRecord, RecordState
from parmig.engine.records.record_store import Entry, RecordStore
from parmig.engine.steering.steering_client import SteeringClient, running
from parmig.options import option
from parmig.units import NS_PER_S
from parmig.values import STATE_DIR
from parmig.version import __version__

T = TypeVar("T")


class StatusOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown."""

    host: Annotated[bool, option("Show the records of all hand-overs of this host.")] = False
    state_dir: Annotated[str, STATE_DIR] = ""


class SessionStatus(msgspec.Struct, kw_only=True):
    """One record, as ``--json`` prints it.

    ``owner`` is ``here``, ``there`` (the other host) or ``undecided``; ``settled``: nothing is left to do. ``process``
    is the parmig that uses the record now, or null. ``resumable``: the receiver was killed, and ``parmig receive
    --resume`` may go on. ``problem`` says why a record cannot be read.
    """

    session: str
    side: str = ""
    state: str = ""
    owner: str = "undecided"
    settled: bool = False
    kind: str = ""
    guest: str = ""
    peer: str = ""
    since: str = ""
    process: int | None = None
    resumable: bool = False
    problem: str | None = None


@o.command()
def status(
    options: StatusOptions,
    output: o.JsonOutput,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of a running command.", show_default="all")] = "",
) -> None:
    """Show what runs here and how far it is, or who owns which guest by the records of this host.

    A line of --host with owner undecided needs parmig recover, unless a process still works on it.
    """
    with showing_errors():
        if options.host:
            _show_host(options, output)
        elif name:
            with SteeringClient(name) as client:
                _show(client.status(), output, print_details)
        else:
            _show(running(), output, print_running)


def _show(shown: T, output: o.JsonOutput, show: Callable[[T], None]) -> None:
    if not output.json:
        show(shown)
    elif isinstance(shown, list):
        print_json({"parmig": __version__, "running": shown})
    else:
        print_json(shown)


def _show_host(options: StatusOptions, output: o.JsonOutput) -> None:
    with RecordStore(options.state_dir) as store:
        resumable = resumable_sessions(store)
        sessions = [describe_entry(entry, resumable) for entry in store.entries()]
    if output.json:
        print_json({"parmig": __version__, "sessions": sessions})
    else:
        print_sessions(sessions)


def describe_entry(entry: Entry, resumable: Collection[str] = ()) -> SessionStatus:
    """What is shown of *entry*. *resumable*: sessions that have what another receiver needs."""
    record = entry.record
    if record is None:
        return SessionStatus(session=entry.name.partition("-")[0], problem=entry.problem)
    return SessionStatus(
        session=record.name,
        side=record.side,
        state=record.state.value,
        owner=record.owner,
        settled=record.settled,
        kind=record.kind,
        guest=record.guest,
        peer=record.peer or record.here,
        since=_clock(record),
        process=record.process if entry.in_use else None,
        resumable=record.name in resumable and record.state is RecordState.OPEN and not entry.in_use,
    )


def _clock(record: HandOverRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.changed_ns // NS_PER_S))


def print_sessions(sessions: list[SessionStatus]) -> None:
    """Print *sessions* as a table on standard output."""
    if not sessions:
        typer.echo("no hand-over is on record here")
        return
    rows = []
    for one in sessions:
        guest = f"{one.guest or one.kind} {one.peer}".strip()
        rows.append((one.session, one.side, one.state, one.owner, one.since, guest, to_do(one)))
    columns = ("session", "side", "state", "owner", "since", "guest", "to do")
    output_console().print(plain_table(columns, rows, folded=("guest", "to do")))


def to_do(session: SessionStatus) -> str:
    """What has to be done about *session*, in the words of a table; empty: nothing."""
    if session.problem:
        return session.problem
    if session.process is not None:
        return f"process {session.process} works on it"
    if session.resumable:
        return f"parmig receive --resume {session.session}"
    return "" if session.settled or session.state == "open" else f"parmig recover {session.session}"
