# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import signal

import pytest

from parmig.cli.signals import SIGNALS, cancelling


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_cancels_and_a_second_one_only_says_so(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    calls: list[None] = []
    with cancelling(lambda: calls.append(None)):
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
    assert len(calls) == 1
    first, second = capfd.readouterr().err.splitlines()
    assert first == "parmig: cancelling"
    assert "already" in second


def test_handlers_are_put_back_whatever_happens() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]

    def fail() -> None:
        with cancelling(lambda: None):
            assert [signal.getsignal(number) for number in SIGNALS] != before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [signal.getsignal(number) for number in SIGNALS] == before
