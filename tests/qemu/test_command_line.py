# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest

from parmig.errors import UsageError
from parmig.guests.qemu.command_line import DestinationLine, SourceQemu, rewrite
from parmig.guests.qemu.layout import Backend
from parmig.guests.qemu.option_text import OptionText, map_paths, split

IMPLIED = Backend("pc.ram", "memory-backend-ram", 1 << 28, False)
PLAIN = SourceQemu("pc-i440fx-7.2", "pc.ram", (IMPLIED,), ("pc.ram",))
FILE = "memory-backend-file,id=ram0,size=256M,mem-path=/dev/shm/a,share=on,merge=off"
NAMED = SourceQemu("pc-q35-7.2", "ram0", (Backend("ram0", "memory-backend-file", 1 << 28, True),), ("ram0",))


def line(text: str, source: SourceQemu = PLAIN, memory: str = "same", *maps: tuple[str, str]) -> DestinationLine:
    return rewrite(["qemu", *text.split()], source, maps, memory)


def words(*arguments: object, memory: str = "same") -> str:
    text, source, *maps = arguments
    return " ".join(line(str(text), source, memory, *maps).arguments)  # type: ignore[arg-type]


def test_the_machine_is_named_with_its_version_and_the_guest_is_awaited() -> None:
    assert words("-M pc,usb=on -m 1G", PLAIN) == "qemu -machine pc-i440fx-7.2,usb=on -m 1G -incoming defer -S"
    assert words("-m 1G", PLAIN) == "qemu -machine pc-i440fx-7.2 -m 1G -incoming defer -S"


def test_several_machine_options_become_one_as_in_qemu() -> None:
    text = "-machine type=pc,usb=on -machine memory-backend=m,usb=off"
    assert words(text, PLAIN).startswith("qemu -machine pc-i440fx-7.2,usb=off,memory-backend=m -inc")


@pytest.mark.parametrize("text", ["-S", "--S", "-incoming defer", "-incoming tcp:0:1 -S", "-loadvm x"])
def test_how_the_source_was_started_is_left_out(text: str) -> None:
    assert words(f"-m 1G {text} -smp 2", PLAIN) == "qemu -machine pc-i440fx-7.2 -m 1G -smp 2 -incoming defer -S"


def test_an_image_after_a_flag_stays() -> None:
    assert words("-S disk.img -nographic", PLAIN).endswith("7.2 disk.img -nographic -incoming defer -S")


def test_what_a_kernel_is_told_is_neither_an_option_nor_a_path() -> None:
    text = rewrite(["qemu", "-append", "-S", "-name", "/run/a"], PLAIN, [("/run/a", "/run/b")], "same")
    assert text.arguments[3:] == ("-append", "-S", "-name", "/run/a", "-incoming", "defer", "-S")


@pytest.mark.parametrize(
    ("text", "mapped"),
    [
        ("/run/a", "/run/b"),
        ("unix:/run/a/qmp,server=on", "unix:/run/b/qmp,server=on"),
        ("file=/run/a,if=none", "file=/run/b,if=none"),
        ('{"filename":"/run/a"}', '{"filename":"/run/b"}'),
        ("/run/a.img", "/run/a.img"),
        ("/run/abc", "/run/abc"),
        ("/var/run/a", "/var/run/a"),
        ("x/run/a", "x/run/a"),
        ("/run/a/deep/x", "/elsewhere/x"),
        ("/run/b/x", "/run/a/x"),
        ("file=/odd,,name/x", "file=/even,,name/x"),
    ],
)
def test_a_path_is_mapped_whole_and_once(text: str, mapped: str) -> None:
    maps = [("/run/a", "/run/b"), ("/run/a/deep", "/elsewhere"), ("/run/b", "/run/a"), ("/odd,name", "/even,name")]
    assert map_paths(text, maps) == mapped
    assert map_paths(text, []) == text


def test_sockets_and_the_program_are_mapped() -> None:
    text = rewrite(["/opt/a/qemu", "-qmp", "unix:/opt/a/q,server=on"], PLAIN, [("/opt/a", "/opt/b")], "same")
    assert text.arguments[0] == "/opt/b/qemu"
    assert "unix:/opt/b/q,server=on" in text.arguments


@pytest.mark.parametrize(
    ("memory", "backend"),
    [
        ("same", FILE),
        ("private", "memory-backend-ram,id=ram0,size=256M,merge=off"),
        ("shared", "memory-backend-file,mem-path=/dev/shm,share=on,id=ram0,size=256M,merge=off"),
        ("hugetlb", "memory-backend-file,mem-path=/dev/hugepages,share=on,prealloc=on,id=ram0,size=256M,merge=off"),
        ("memfd", "memory-backend-memfd,share=on,id=ram0,size=256M,merge=off"),
    ],
)
def test_memory_becomes_what_is_wished_and_keeps_its_name(memory: str, backend: str) -> None:
    text = words(f"-machine q35,memory-backend=ram0 -object {FILE}", NAMED, memory=memory)
    assert text == f"qemu -machine pc-q35-7.2,memory-backend=ram0 -object {backend} -incoming defer -S"


def test_memory_that_stays_is_the_file_of_the_source_and_no_mapped_path() -> None:
    source = NAMED._replace(files={"ram0": "/run/a/ram"})
    given = "-object memory-backend-memfd,id=ram0,size=256M,hugetlb=on -kernel /run/a/kernel"
    text = " ".join(line(given, source, "in-place", ("/run/a", "/run/b")).arguments)
    assert "-object memory-backend-file,mem-path=/run/a/ram,share=on,id=ram0,size=256M" in text
    assert "-kernel /run/b/kernel" in text


def test_private_memory_cannot_stay() -> None:
    with pytest.raises(UsageError, match=r"'pc.ram' cannot stay in place.*--memory memfd"):
        line("-m 256M", PLAIN, "in-place")


def test_plain_memory_gets_a_backend_of_the_same_name_and_size() -> None:
    text = words("-m 256 -mem-path /x -mem-prealloc", PLAIN, memory="memfd")
    assert text == (
        "qemu -machine pc-i440fx-7.2,memory-backend=pc.ram -m 256 "
        "-object memory-backend-memfd,share=on,id=pc.ram,size=268435456 -incoming defer -S"
    )
    assert words("-m 256 -mem-path /x", PLAIN, memory="private").endswith("-m 256 -incoming defer -S")


def test_an_object_in_json_stays_json_with_types() -> None:
    backend = {"qom-type": "memory-backend-ram", "id": "ram0", "size": 1 << 28, "host-nodes": [0], "share": False}
    found = rewrite(["qemu", "-object", json.dumps(backend)], NAMED, [], "hugetlb").arguments
    assert json.loads(found[found.index("-object") + 1]) == {
        "qom-type": "memory-backend-file",
        "mem-path": "/dev/hugepages",
        "share": True,
        "prealloc": True,
        "id": "ram0",
        "size": 1 << 28,
        "host-nodes": [0],
    }


def test_other_objects_and_nodes_of_memory_stay() -> None:
    nodes = SourceQemu("pc-q35-7.2", "", (Backend("m0", "memory-backend-ram", 1 << 28, False),), ("m0", "rng"))
    text = "-object rng-random,id=rng -object memory-backend-ram,id=m0,size=1G -numa node,memdev=m0"
    changed = words(text, nodes, memory="memfd")
    assert "-object rng-random,id=rng " in changed
    assert "-object memory-backend-memfd,share=on,id=m0,size=1G -numa node,memdev=m0" in changed
    assert "memory-backend=" not in changed


def test_what_the_command_line_does_not_hold_is_noted() -> None:
    source = SourceQemu("pc", "pc.ram", (IMPLIED,), ("pc.ram", "net0", "d1", "d"))
    text = '-device e1000,id=net0 -device {"id":"d1"} -netdev tap,id=x,fd=27 -netdev tap,vhostfd=3 -readconfig /c'
    notes = line(text + " -append fd=1", source).notes
    assert [note.split(":")[0].split(" was")[0] for note in notes] == [
        "-netdev tap,id=x,fd=27",
        "-netdev tap,vhostfd=3",
        "-readconfig /c",
        "'d'",
    ]


def test_commas_that_are_doubled_are_part_of_a_value() -> None:
    assert split("a,b=c,,d,e") == ["a", "b=c,d", "e"]
    assert str(OptionText("file,path=a,,b,on", "type")) == "file,path=a,,b,on=on"
