# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from parmig.errors import UsageError
from parmig.inspection import inspect_file
from parmig.inspection import stream_source as source
from parmig.stream.ram_encode import encode_zero_words
from tests.inspection.files import described, description, device_section, piped, stream
from tests.stream.streams import DEVICE


def test_a_pipe_is_told_like_a_file(tmp_path: Path) -> None:
    content = stream(encode_zero_words("mem0", np.arange(64)), state=device_section(), describe=description(DEVICE))
    from_file = described(tmp_path, content + b"tail")
    for step in (1, 7, len(content)):
        with piped(content + b"tail", step) as path:
            from_pipe = inspect_file(path)
        from_pipe.file, from_pipe.allocated_bytes = from_file.file, from_file.allocated_bytes
        assert from_pipe == from_file


@pytest.mark.parametrize("path", ["/nonexistent", "/dev/shm", "/dev/ptmx"])
def test_what_cannot_be_a_stream_is_refused_by_its_name(path: str) -> None:
    with pytest.raises(UsageError, match=path):
        inspect_file(path)


def test_a_silent_pipe_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "PIPE_SILENCE_S", 0.01)
    reading, writing = os.pipe()
    try:
        found = inspect_file(f"/proc/self/fd/{reading}")
    finally:
        os.close(reading)
        os.close(writing)
    assert found.error.type == "LimitExceededError"


def test_a_pipe_with_too_much_behind_memory_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "LOOK_AHEAD_BYTES", 100_000)
    content = stream(state=device_section(body=bytes(1 << 20)))
    with piped(content) as path:
        found = inspect_file(path)
    assert found.error.type == "StreamTooLongError"
    assert len(found.blocks) == 1
