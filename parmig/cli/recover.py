# SPDX-License-Identifier: Apache-2.0
"""``parmig recover``: who owns a guest after a crash; finish the hand-over, or roll it back."""

from __future__ import annotations

from typing import Annotated, cast

import msgspec
import typer

from parmig.cli import options as o
from parmig.cli.output import echo_error, print_json
from parmig.cli.progress import print_line
from parmig.cli.signals import cancelling
from parmig.cli.status import describe_entry
from parmig.engine.handover.recoverer import Recoverer, RecoveryConfig
from parmig.engine.handover.recovery import Decision
from parmig.engine.records.record_store import Entry, RecordStore, has_ended
from parmig.engine.reporting.error_reports import describe_error
from parmig.engine.reporting.report import ErrorReport
from parmig.errors import ParmigError, UsageError
from parmig.options import DURATION, option
from parmig.values import KEYS, PEER, STATE_DIR
from parmig.version import __version__


class RecoverOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a hand-over is settled."""

    peer: Annotated[
        str, option("(source) Where the destination answers.", metavar="URI", shown="where it received")
    ] = ""
    listen: Annotated[
        str,
        option(
            "(destination) Where to wait for the question of the source. With this option also if the hand-over is "
            "settled here.",
            metavar="URI",
            shown="where it received, if it is not settled",
        ),
    ] = ""
    decide: Annotated[
        str,
        option(
            "Only if the other host is lost, or you have looked there: the guest is to run on this host (here) or on "
            "the other one (there). If you are wrong, it runs twice.",
            choices=("here", "there"),
            shown="ask the other host",
        ),
    ] = ""
    wait_ns: Annotated[
        int,
        option("How long to ask, or to wait for the question.", DURATION, shown="10s to ask; no limit to wait", ge=0),
    ] = 0
    keys: Annotated[str, KEYS] = ""
    peers: Annotated[
        tuple[str, ...],
        option(
            "The other host's certificate has this name or fingerprint; repeat the option for more.",
            PEER,
            name="peer-name",
            shown="as for send and receive",
        ),
    ] = ()
    state_dir: Annotated[str, STATE_DIR] = ""


@o.command()
def recover(
    options: RecoverOptions,
    output: o.JsonOutput,
    session: Annotated[
        str, typer.Argument(metavar="SESSION", help="From parmig status --host.", show_default="the only one")
    ] = "",
) -> None:
    """Settle a hand-over that did not end: find out who owns the guest, and finish or roll back.

    Run it on the source, which asks the destination. If parmig receive has ended there, run it there first.
    """
    error: ErrorReport | None = None
    code = 0
    status = None
    guest = ""
    try:
        with RecordStore(options.state_dir) as store:
            name = choose(store.entries(), session)
            with store.open(name) as file:
                config = RecoveryConfig(
                    peer=options.peer,
                    listen=options.listen,
                    decide=cast("Decision", options.decide),
                    wait_ns=options.wait_ns,
                    keys=options.keys,
                    peers=options.peers,
                )
                recoverer = Recoverer(file, config, print_line)
                try:
                    with cancelling(recoverer.cancel):
                        recoverer.settle()
                finally:
                    status, guest = describe_entry(Entry(name, file.record)), recoverer.guest.value
    except ParmigError as caught:
        error, code = describe_error(caught), caught.exit_code
    if output.json:
        print_json({"parmig": __version__, "session": status, "guest": guest, "error": error})
    elif status is not None and error is None:
        typer.echo(f"session {status.session}: the guest belongs {_PLACE[status.owner]}; its monitor here: {guest}")
    if error is not None:
        echo_error(error)
    raise typer.Exit(code)


_PLACE = {"here": "to this host", "there": "to the other host", "undecided": "to nobody yet"}


def choose(entries: list[Entry], session: str) -> str:
    """The file of *session*; of the only record that is not settled if *session* is empty.

    Raises:
        UsageError: there is none, or there are several.
    """
    if session:
        entries = [entry for entry in entries if entry.name.startswith(session)]
        if not entries:
            raise UsageError(f"no session {session!r} is on record here; see parmig status --host")
    else:
        entries = [entry for entry in entries if not has_ended(entry)]
        if not entries:
            raise UsageError("no hand-over here is open; name a session of parmig status --host to look at it")
    if len(entries) > 1:
        names = ", ".join(entry.name.removesuffix(".record") for entry in entries[:10])
        raise UsageError(f"there are several: {names}; name one, like {entries[0].name.removesuffix('.record')}")
    return entries[0].name
