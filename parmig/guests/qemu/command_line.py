# SPDX-License-Identifier: Apache-2.0
"""From the command line of a source's QEMU to that of its destination. Pure rewriting, no I/O.

What does not have to change stays as it is, in its order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from parmig.errors import UsageError
from parmig.guests.qemu.layout import Backend
from parmig.guests.qemu.option_text import OptionText, map_paths

_LEFT_OUT = frozenset({"S", "incoming", "loadvm", "machine", "M"})
"""Options that the destination does not take over. Those that it needs are added again."""

_NO_PATHS = frozenset({"append", "name"})
"""Options whose values are for the guest or for people: no path in them is one of this host."""

_MEMORY: Mapping[str, Mapping[str, str | bool]] = {
    "private": {"qom-type": "memory-backend-ram"},
    "shared": {"qom-type": "memory-backend-file", "mem-path": "/dev/shm", "share": True},
    "hugetlb": {"qom-type": "memory-backend-file", "mem-path": "/dev/hugepages", "share": True, "prealloc": True},
    "memfd": {"qom-type": "memory-backend-memfd", "share": True},
}
"""What a memory backend is made of. QEMU makes a file of its own in a directory, and removes its name at once."""

IN_PLACE = "in-place"
"""The kind of memory that is the source's own files."""

_KEPT = re.compile(r"id|size|dump|merge|policy|host-nodes.*|x-use-canonical-path-for-ramblock-id")
"""Options of a memory backend that mean the same for every kind."""

_RAM_KINDS = re.compile(r"memory-backend-(ram|file|memfd)")

_DESCRIPTOR = re.compile(r"\b(?:vhost)?fds?\"?[=:]|/dev/fdset/")
"""A value that names a descriptor, such as ``tap,fd=27``."""


class SourceQemu(NamedTuple):
    """What must be known of the source besides its command line.

    Attributes:
        machine: its machine type, with the version: an alias may mean another one at the destination.
        machine_backend: name of the memory backend of the machine; empty if its memory belongs to NUMA nodes.
        backends: all memory backends, with the one that QEMU makes itself for a plain ``-m``.
        named: names of its devices and objects, to see which came after the start.
        files: path of the shared file of each memory backend by name, if they were asked for.
    """

    machine: str
    machine_backend: str
    backends: tuple[Backend, ...]
    named: tuple[str, ...]
    files: Mapping[str, str] = {}


class DestinationLine(NamedTuple):
    """The command line of a destination, and what to look at before it is used, for people."""

    arguments: tuple[str, ...]
    notes: tuple[str, ...]


class _Option(NamedTuple):
    """An option as it stands on the command line: its name without dashes, and all its words."""

    name: str
    words: tuple[str, ...]

    @property
    def value(self) -> str:
        return self.words[1] if len(self.words) > 1 else ""


def rewrite(
    arguments: Sequence[str], source: SourceQemu, maps: Sequence[tuple[str, str]], memory: str
) -> DestinationLine:
    """The destination's command line.

    Args:
        arguments: of the source's QEMU, with its program.
        source: what it is.
        maps: pairs of paths (FROM, TO): what is FROM at the source is TO at the destination.
        memory: what the destination's RAM is made of: ``same``, ``private``, ``shared``, ``hugetlb``, ``memfd``, or
            ``in-place``: the files of the source. Its blocks keep their names, because both sides must have the same.

    Raises:
        UsageError: ``in-place``, and a backend is in no shared file.
    """
    given = _options(arguments[1:])
    machine = _machine(given, source.machine)
    options = [option for option in given if option.name not in _LEFT_OUT]
    if memory != "same":
        options = _with_memory(options, machine, source, memory)
    line = [map_paths(arguments[0], maps), "-machine", map_paths(str(machine), maps)]
    for option in options:
        stays = option.name in _NO_PATHS or (memory == IN_PLACE and _is_memory(option))
        line += option.words if stays else [map_paths(word, maps) for word in option.words]
    line += ["-incoming", "defer", "-S"]
    return DestinationLine(tuple(line), tuple(_notes(options, source)))


def _options(arguments: Sequence[str]) -> list[_Option]:
    """The options of a command line. Words that begin with no dash belong to the option before them."""
    options: list[_Option] = []
    for word in arguments:
        last = options[-1] if options else _Option("", ())
        is_value = len(last.words) == 1 and (not word.startswith("-") or word == "-" or last.name in _NO_PATHS)
        if is_value and last.name != "S":
            options[-1] = _Option(last.name, (*last.words, word))
        else:
            options.append(_Option(word.lstrip("-") if word.startswith("-") else "", (word,)))
    return options


def _is_memory(option: _Option) -> bool:
    """Whether it makes a memory backend."""
    return option.name == "object" and bool(_RAM_KINDS.fullmatch(OptionText(option.value, "qom-type").get("qom-type")))


def _machine(options: Sequence[_Option], versioned: str) -> OptionText:
    """All ``-machine`` options as one, as QEMU merges them, with the versioned type."""
    merged = OptionText(versioned, "type")
    for option in options:
        if option.name in ("machine", "M"):
            parts = OptionText(option.value, "type").parts
            merged.parts.update((key, value) for key, value in parts.items() if key != "type")
    return merged


def _with_memory(options: Sequence[_Option], machine: OptionText, source: SourceQemu, memory: str) -> list[_Option]:
    """*options* with RAM of another kind; *machine* is changed where it must name the backend."""
    changed, named = [], set()
    for option in options:
        if _is_memory(option):
            backend = OptionText(option.value, "qom-type")
            named.add(backend.get("id"))
            _make(backend, memory, source.files)
            changed.append(_Option(option.name, (option.words[0], str(backend))))
        elif option.name not in ("mem-path", "mem-prealloc"):  # of a plain -m
            changed.append(option)
    implied = [item for item in source.backends if item.name == source.machine_backend and item.name not in named]
    if memory != "private":
        for item in implied:
            backend = OptionText(f"memory-backend-ram,id={item.name},size={item.size_bytes}", "qom-type")
            _make(backend, memory, source.files)
            changed.append(_Option("object", ("-object", str(backend))))
            machine.parts["memory-backend"] = item.name
    return changed


def _make(backend: OptionText, memory: str, files: Mapping[str, str]) -> None:
    """Let *backend* be of the kind that *memory* names."""
    kept = {key: value for key, value in backend.parts.items() if _KEPT.fullmatch(key)}
    kind: Mapping[str, str | bool] = _MEMORY.get(memory, {})
    if memory == IN_PLACE:
        name = backend.get("id")
        if name not in files:
            raise UsageError(
                f"memory backend {name!r} cannot stay in place: it is in no shared file; move it to memory of another "
                "kind first (--memory memfd), which can stay in place from then on"
            )
        kind = {"qom-type": "memory-backend-file", "mem-path": files[name], "share": True}
    backend.parts = {**kind, **kept}


def _notes(options: Sequence[_Option], source: SourceQemu) -> list[str]:
    notes = []
    for option in options:
        if option.name == "readconfig":
            notes.append(f"-readconfig {option.value}: parmig does not look into this file; change it where need be")
        elif option.name not in _NO_PATHS and (option.name == "add-fd" or _DESCRIPTOR.search(option.value)):
            notes.append(f"{' '.join(option.words)}: names a descriptor of the source's process; give another one")
    words = "\n".join(word for option in options for word in option.words)
    for name in source.named:
        if name != source.machine_backend and not re.search(rf"\bid\"?\s*[=:]\s*\"?{re.escape(name)}(?![\w.-])", words):
            notes.append(f"{name!r} was added to the source after its start; add it here too")
    return notes
