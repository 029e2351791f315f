from __future__ import annotations

from pathlib import Path

import pytest

from stream_api import cli

pytestmark = pytest.mark.usefixtures("kept_logging")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("STREAM_API_PORT", "70000", ["STREAM_API_PORT", "65535", "70000"]),
        ("STREAM_API_LOG_FORMAT", "xml", ["STREAM_API_LOG_FORMAT", "json", "xml"]),
        ("STREAM_API_BATCH_BYTES", str(2**40), ["STREAM_API_BATCH_BYTES", "STREAM_API_SEGMENT_BYTES"]),
    ],
)
def test_a_wrong_setting_is_named_in_a_sentence(
    name: str, value: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    assert cli.main(["migrate"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("stream-api: ")
    assert all(word in output.err for word in words)
    assert "Traceback" not in output.err


def test_migrate_names_what_it_applied_and_then_has_nothing_to_do(
    empty_database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database)
    assert cli.main(["migrate"]) == 0
    assert "applied 0001_" in capsys.readouterr().out
    assert cli.main(["migrate"]) == 0
    assert capsys.readouterr().out == "nothing to apply\n"


def test_a_database_that_is_away_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://someone:hidden@127.0.0.1:1/nothing")
    assert cli.main(["migrate"]) == 1
    output = capsys.readouterr().err
    assert output.startswith("stream-api: ")
    assert "hidden" not in output


def test_a_misspelt_setting_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://someone:hidden@127.0.0.1:1/nothing")
    monkeypatch.setenv("STREAM_API_LANE", "3")
    cli.main(["migrate"])
    output = capsys.readouterr().err
    assert "settings.unknown" in output
    assert "STREAM_API_LANE" in output


def test_a_host_that_is_none_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--host", "foo.invalid"]) == 1
    assert "cannot listen on foo.invalid:3002" in capsys.readouterr().err


def test_an_unknown_role_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["dance"])
    assert "dance" in capsys.readouterr().err


_WRONG = '[datasets.a]\ntabel = "t"\n'


@pytest.mark.parametrize("role", ["serve", "worker"])
def test_a_file_of_datasets_that_is_not_right_keeps_the_service_from_starting(
    role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "d.toml").write_text(_WRONG)
    monkeypatch.setenv("STREAM_API_DATASETS", str(tmp_path / "d.toml"))
    assert cli.main([role]) == 2
    assert "d.toml:2:1: datasets.a.tabel: is not known; did you mean table?" in capsys.readouterr().err


def test_a_file_of_datasets_can_be_checked_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "d.toml"
    file.write_text(_WRONG)
    assert cli.main(["check-datasets", str(file)]) == 1
    assert f"{file}:1:11: datasets.a: has no table" in capsys.readouterr().err
    file.write_text('[datasets.a]\ntable = "t"\n')
    assert cli.main(["check-datasets", str(file)]) == 0
    assert capsys.readouterr().out == "a: t\n"
