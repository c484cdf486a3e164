# SPDX-License-Identifier: Apache-2.0
"""The messages of a control socket: each is one JSON object on a line.

A client sends ``{"ask": "status"}``, ``{"ask": "set", "change": {"max_bandwidth_bytes_per_s": 1000000}}`` or ``{"ask":
"cancel"}``. The answer is ``{"answer": "status", "status": {...}}``, ``{"answer": "done"}`` or ``{"answer": "refused",
"error": {...}}``. A connection may ask any number of questions, one after the other.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from parmig.engine.reporting.change import Change
from parmig.engine.reporting.report import ErrorReport
from parmig.engine.steering.engine_status import EngineStatus
from parmig.errors import ProtocolError

MAX_QUESTION_BYTES = 16 << 10
MAX_ANSWER_BYTES = 4 << 20
"""A status names at most 64 workers, 64 paths, and all changes so far."""


class AskStatus(msgspec.Struct, frozen=True, tag_field="ask", tag="status", forbid_unknown_fields=True):
    """How far is the command?"""


class AskChange(msgspec.Struct, frozen=True, tag_field="ask", tag="set", forbid_unknown_fields=True):
    """Change these limits."""

    change: Change


class AskCancel(msgspec.Struct, frozen=True, tag_field="ask", tag="cancel", forbid_unknown_fields=True):
    """Cancel."""


class ToldStatus(msgspec.Struct, frozen=True, tag_field="answer", tag="status"):
    """How far it is."""

    status: EngineStatus


class Done(msgspec.Struct, frozen=True, tag_field="answer", tag="done"):
    """The change is in force, or the command has begun to cancel."""


class NotDone(msgspec.Struct, frozen=True, tag_field="answer", tag="refused"):
    """Nothing was changed, for this reason."""

    error: ErrorReport


Question = AskStatus | AskChange | AskCancel
Answer = ToldStatus | Done | NotDone

T = TypeVar("T")

encode = msgspec.json.Encoder().encode_lines
_questions = msgspec.json.Decoder(Question)
_answers = msgspec.json.Decoder(Answer)


def read_question(line: bytes) -> Question:
    """The question on *line*. Raises ProtocolError."""
    return _read(_questions, line)


def read_answer(line: bytes) -> Answer:
    """The answer on *line*. Raises ProtocolError."""
    return _read(_answers, line)


def _read(decoder: msgspec.json.Decoder[T], line: bytes) -> T:
    try:
        return decoder.decode(line)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a message of a control socket: {error}") from error
