# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from cryptography import x509
from typer.testing import CliRunner, Result

from parmig.cli.app import app
from parmig.transport.security.expiry import expiries
from parmig.transport.security.fleet import add_hosts

FILES = ["ca-cert.pem", "client-cert.pem", "client-key.pem", "server-cert.pem", "server-key.pem"]


def keygen(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["keygen", *map(str, arguments)])


def all_files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_fleet_is_made_and_grows_and_nothing_is_overwritten(tmp_path: Path) -> None:
    fleet = tmp_path / "fleet"
    result = keygen(fleet, "--host", "a.test,192.0.2.1,2001:DB8::1", "--host", "b.test", "--days", 40)
    assert result.exit_code == 0, result.output
    assert f"scp -pr {fleet}/a.test a.test:/etc/parmig/keys" in result.output
    assert sorted(path.name for path in (fleet / "a.test").iterdir()) == FILES
    assert {stat.S_IMODE(path.stat().st_mode) for path in fleet.rglob("*.pem")} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (fleet, fleet / "a.test", fleet / "b.test")} == {0o700}
    before = all_files(fleet)
    refused = keygen(fleet, "--host", "c.test", "--host", "b.test")
    assert refused.exit_code == 2
    assert "b.test exists, and keys are never overwritten" in refused.output
    assert all_files(fleet) == before
    grown = keygen(fleet, "--host", "c.test", "--json")
    assert json.loads(grown.stdout)["hosts"] == [{"names": ["c.test"], "directory": str(fleet / "c.test")}]
    assert before.items() <= all_files(fleet).items()
    assert (fleet / "c.test/ca-cert.pem").read_bytes() == (fleet / "ca-cert.pem").read_bytes()


def test_certificates_name_their_host_and_end_in_time(tmp_path: Path) -> None:
    (host,) = add_hosts(str(tmp_path), [("a.test", "192.0.2.1", "2001:db8::1")], 40)
    for role in ("server", "client"):
        certificate = x509.load_pem_x509_certificate((Path(host) / f"{role}-cert.pem").read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == ["a.test"]
        assert list(map(str, names.get_values_for_type(x509.IPAddress))) == ["192.0.2.1", "2001:db8::1"]
    authority, own = expiries(host, "server")
    assert (authority.days_left, own.days_left) == (3649, 39)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "whose keys? Give --host"),
        (["--host", "a/b"], "is not a host"),
        (["--host", "../x"], "is not a host"),
        (["--host", "a.test", "--host", "a.test,b.test"], "named twice"),
        (["--host", "a.test", "--days", "0"], "--days"),
    ],
)
def test_what_names_no_host_is_bad_usage(tmp_path: Path, arguments: list[str], words: str) -> None:
    result = keygen(tmp_path, *arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())
    assert list(tmp_path.iterdir()) == []


def test_an_authority_whose_key_others_can_read_signs_nothing(tmp_path: Path) -> None:
    add_hosts(str(tmp_path), [("a.test",)], 30)
    (tmp_path / "ca-key.pem").chmod(0o644)
    result = keygen(tmp_path, "--host", "b.test")
    assert result.exit_code == 3
    assert "others can read it" in result.output
    assert not (tmp_path / "b.test").exists()


def test_doctor_shows_certificates_and_their_end(tmp_path: Path) -> None:
    (host,) = add_hosts(str(tmp_path), [("a.test",)], 20)
    result = CliRunner().invoke(app, ["doctor", "--keys", host, "--json"])
    probes = {probe["name"]: probe for probe in json.loads(result.stdout)["probes"] if "pem" in probe["name"]}
    assert {name: probe["status"] for name, probe in probes.items()} == {
        "ca-cert.pem": "ok",
        "server-cert.pem": "limited",
        "client-cert.pem": "limited",
    }
    assert "for 19 more days" in probes["server-cert.pem"]["detail"]
