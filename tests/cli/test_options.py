# SPDX-License-Identifier: Apache-2.0
"""What ``--help`` says about defaults, against what happens without the option."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any

import pytest

from parmig.cli import demo, receive, restore, save, send
from parmig.config import ReceiveConfig, RestoreConfig, SaveConfig, SendConfig

COMMANDS = [send.send, save.save, restore.restore, receive.receive, demo.demo]
NOTHING = {"no limit", "off", "none", "for ever", "any free", "firmware only"}
CONFIGURATIONS = [
    (send.send, SendConfig()),
    (save.save, SaveConfig()),
    (restore.restore, RestoreConfig()),
    (receive.receive, ReceiveConfig()),
]
OTHER_NAMES = {"wait_ns": "wait", "replace": "force", "paths": "path"}


def options(command: Callable[..., None]) -> dict[str, tuple[Any, Any]]:
    """Typer's description and the default of each option."""
    hints = typing.get_type_hints(command, include_extras=True)
    parameters = inspect.signature(command).parameters
    return {name: (hints[name].__metadata__[0], one.default) for name, one in parameters.items()}


def asked(value: Any) -> Any:
    """*value*, or None where it asks for nothing in particular."""
    return None if not value or value == (0, 0) else value


@pytest.mark.parametrize("command", COMMANDS)
def test_a_default_that_is_shown_in_words_is_the_one_that_holds(command: Callable[..., None]) -> None:
    for name, (told, default) in options(command).items():
        if not isinstance(told.show_default, str) or told.show_default.startswith("the address of"):
            continue
        if told.show_default in NOTHING:
            assert not default, name
        else:
            assert told.parser(told.show_default) == default, name


@pytest.mark.parametrize(("command", "config"), CONFIGURATIONS)
def test_the_default_of_every_option_is_that_of_the_configuration(command: Callable[..., None], config: Any) -> None:
    defaults = {name: default for name, (_, default) in options(command).items()}
    for field in config.__struct_fields__:
        short = field.removesuffix("_per_s").removesuffix("_bytes").removesuffix("_ns").removesuffix("_percent")
        default = defaults[OTHER_NAMES.get(field, short)]
        if field == "listen":
            assert default is inspect.Parameter.empty  # the command line asks for it
        else:
            assert asked(default) == asked(getattr(config, field)), field
