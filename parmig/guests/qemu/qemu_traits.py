# SPDX-License-Identifier: Apache-2.0
"""Asks a QEMU what its guest depends on besides the machine type and RAM, for both sides to compare."""

from __future__ import annotations

from parmig.errors import GuestError
from parmig.guests.qemu import description
from parmig.guests.qemu.cpu_words import features_in
from parmig.guests.qemu.qmp import Qmp
from parmig.guests.trait import Trait

FOLLOWS_FROM_SMP = frozenset({"ht", "cmp-legacy"})
"""Features that every QEMU gives to several virtual CPUs, and that only newer ones show among the others (10.0)."""


def ask_traits(qmp: Qmp, features: list[str] | None = None) -> dict[str, Trait]:
    """The traits of QEMU's guest, by name. It only asks; the guest runs on.

    Args:
        features: of its CPU, as an earlier call left them here, or empty. They stay the same as long as QEMU runs, and
            on hosts whose features :mod:`.cpu_words` does not know, asking for up to 200 takes 0.1 s.

    Raises:
        GuestError: QEMU is gone, or refused what every version can answer.
    """
    cpus = qmp.execute("query-cpus-fast")
    path = cpus[0]["qom-path"]
    model = description.cpu_model(str(qmp.execute("qom-get", path=path, property="type")))
    traits = {
        "virtual CPUs": Trait(
            (description.virtual_cpus(len(cpus), _of_machine(qmp, "smp")),), "start both with the same -smp"
        ),
        "memory slots": Trait((description.memory_slots(_of_machine(qmp, "memory")),), "start both with the same -m"),
        "CPU model": Trait((model,), "start both with the same -cpu"),
        "devices": Trait(
            tuple(description.devices(qmp.monitor("info qtree"))),
            "give both the same devices, with the same ids and addresses; parmig qemu-args prints how",
        ),
        "disks": Trait(
            tuple(description.disks(qmp.execute("query-block"))),
            "give the destination the source's images, under the same file names; a link will do",
        ),
    }
    features = [] if features is None else features
    if not features:
        features += _cpu_features(qmp, path, model)
    if features:
        advice = "start both with a -cpu that both hosts can give, for example with FEATURE=off"
        traits["CPU features"] = Trait(tuple(features), advice, may_grow=True)
    return traits


def _of_machine(qmp: Qmp, name: str) -> dict[str, int]:
    """The property *name* of the machine; empty if this version of QEMU has none."""
    try:
        return dict(qmp.execute("qom-get", path="/machine", property=name))
    except GuestError:
        return {}


def _cpu_features(qmp: Qmp, path: str, model: str) -> tuple[str, ...]:
    """The features that the guest's CPU has, as this host gives them. Empty: QEMU has no names for them.

    Args:
        path: of the CPU in QOM. It tells which features are on, with what ``-cpu`` added and removed.
        model: of the CPU. Its features, and all that this host can give (``max``), are the names to ask for.
    """
    names: set[str] = set()
    try:
        for name in ("max", model):
            expanded = qmp.execute("query-cpu-model-expansion", type="static", model={"name": name})
            names |= {feature for feature, value in expanded["model"]["props"].items() if value is True}
    except GuestError:  # not on every architecture
        return ()
    names -= FOLLOWS_FROM_SMP
    states = _features_in_words(qmp, path)
    asked = [(name, qmp.submit("qom-get", path=path, property=name)) for name in names - states.keys()]
    states |= {name: qmp.answer(f"qom-get {name}", future) is True for name, future in asked}
    return tuple(sorted(name for name in names if states[name]))


def _features_in_words(qmp: Qmp, path: str) -> dict[str, bool]:
    """Whether features of the CPU at *path* are on, as far as one answer tells; empty if its QEMU has no such words."""
    try:
        return features_in(qmp.execute("qom-get", path=path, property="feature-words"))
    except GuestError:
        return {}
