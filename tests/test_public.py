# SPDX-License-Identifier: Apache-2.0
"""The public names are there."""

from __future__ import annotations

import pytest

import parmig


@pytest.mark.parametrize("name", parmig.__all__)
def test_every_public_name_can_be_imported_and_has_a_docstring(name: str) -> None:
    found = getattr(parmig, name)
    if name != "__version__":
        assert found.__name__ == name
        assert found.__doc__


def test_public_names_are_unique() -> None:
    assert len(set(parmig.__all__)) == len(parmig.__all__)


def test_another_name_is_an_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'MigrationTea'"):
        _ = parmig.MigrationTea
