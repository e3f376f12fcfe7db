"""Parts for the GPU machine: what comes out is what went in, or nothing comes out and one line says why."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile

import pytest

from tests.benchmark_scripts import benchmark_script

PART_BYTES = 1000


@pytest.fixture(scope="module")
def pack():
    with benchmark_script("gpu/pack") as module:
        yield module


@pytest.fixture
def parts(pack, tmp_path):
    """A wheel over several parts, data with an empty file, and a file that ends where a part ends."""
    wheels, data = tmp_path / "wheels", tmp_path / "data"
    (data / "deep er").mkdir(parents=True)
    wheels.mkdir()
    (wheels / "a.whl").write_bytes(bytes(range(256)) * 10)
    (data / "deep er" / "b.parquet").write_bytes(b"b" * 440)  # with a.whl: 3000 bytes
    (data / "empty").touch()
    (data / "z").write_bytes(b"z")
    pack.pack([wheels, data], tmp_path / "parts", PART_BYTES)
    return tmp_path / "parts"


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rewrite(parts, change):
    path = parts / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def refused(pack, parts, capsys):
    """The one line, with exit code 2 and nothing written."""
    into = parts.parent / "kit"
    before = sorted(parts.parent.iterdir())
    assert pack.main(["unpack", str(parts), "--into", str(into)]) == 2
    assert sorted(parts.parent.iterdir()) == before
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pack.py: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_what_is_unpacked_is_what_was_packed_in_parts_of_the_size_asked_for(pack, parts, tmp_path):
    assert [(path.name, path.stat().st_size) for path in sorted(parts.glob("part.*"))] == [
        ("part.000", 1000),
        ("part.001", 1000),
        ("part.002", 1000),
        ("part.003", 1),
    ]
    assert pack.main(["unpack", str(parts), "--into", str(tmp_path / "kit")]) == 0
    assert files_of(tmp_path / "kit") == {
        "wheels/a.whl": bytes(range(256)) * 10,
        "data/deep er/b.parquet": b"b" * 440,
        "data/empty": b"",
        "data/z": b"z",
    }


def test_the_same_files_give_the_same_parts(pack, parts, tmp_path):
    pack.pack([tmp_path / "wheels", tmp_path / "data"], tmp_path / "again", PART_BYTES)
    assert files_of(tmp_path / "again") == files_of(parts)
    manifest = json.loads((parts / "manifest.json").read_text())
    for part in manifest["parts"]:
        assert part["sha256"] == hashlib.sha256((parts / part["name"]).read_bytes()).hexdigest()


def test_a_damaged_and_a_missing_part_are_named(pack, parts, capsys):
    content = bytearray((parts / "part.001").read_bytes())
    content[500] ^= 1
    (parts / "part.001").write_bytes(content)
    assert "damaged in" in (line := refused(pack, parts, capsys))
    assert "part.001" in line
    assert "part.000" not in line
    (parts / "part.002").unlink()
    assert "1 of 4 parts are not in" in (line := refused(pack, parts, capsys))
    assert "part.002" in line


def test_a_shortened_part_is_damaged(pack, parts, capsys):
    (parts / "part.000").write_bytes((parts / "part.000").read_bytes()[:-1])
    assert "part.000" in refused(pack, parts, capsys)


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "a/../../evil",
        "/evil",
        "a/..",
        ".",
        "",
        "a//b",
        "./a",
        "a\\..\\evil",
        "C:evil",
        "a\0b",
        "a\nb",
        7,
        None,
    ],
)
@pytest.mark.parametrize("what", ["files", "parts"])
def test_a_name_that_leads_out_of_the_folder_is_refused(pack, parts, capsys, name, what):
    rewrite(parts, lambda manifest: manifest[what][0].update({"path" if what == "files" else "name": name}))
    assert "refused the path" in refused(pack, parts, capsys)


def test_a_part_is_looked_for_in_its_folder_only(pack, parts, capsys):
    rewrite(parts, lambda manifest: manifest["parts"][0].update({"name": "deeper/part.000"}))
    assert "a part lies in a folder" in refused(pack, parts, capsys)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda manifest: manifest["files"][0].update(sha256="0" * 64), "is not what was packed"),
        (lambda manifest: manifest["files"][-1].update(bytes=2), "is not what was packed"),
        (lambda manifest: manifest["files"].pop(), "lists less than the parts hold"),
        (lambda manifest: manifest["files"][1].update(path=manifest["files"][0]["path"]), "could not be written"),
        (lambda manifest: manifest["files"][0].update(bytes=-1), "no manifest"),
        (lambda manifest: manifest["files"][0].pop("sha256"), "no manifest"),
        (lambda manifest: manifest.pop("parts"), "no manifest"),
        (lambda manifest: manifest.update(format=2), "has format 2"),
    ],
)
def test_a_manifest_that_does_not_fit_its_parts_is_refused(pack, parts, capsys, change, says):
    rewrite(parts, change)
    assert says in refused(pack, parts, capsys)


def test_a_manifest_that_is_missing_or_no_json_is_refused(pack, parts, capsys):
    (parts / "manifest.json").write_text("{")
    assert "no manifest" in refused(pack, parts, capsys)
    (parts / "manifest.json").unlink()
    assert "missing" in refused(pack, parts, capsys)


def test_nothing_is_written_over(pack, parts, capsys, tmp_path):
    kept = tmp_path / "kit" / "kept"
    kept.parent.mkdir()
    kept.write_text("here before")
    assert "must be new or an empty folder" in refused(pack, parts, capsys)
    assert kept.read_text() == "here before"
    assert pack.main(["pack", str(tmp_path / "data"), "--out", str(parts)]) == 2
    assert "must be new or an empty folder" in capsys.readouterr().err


def test_links_empty_sources_and_equal_names_are_not_packed(pack, tmp_path, capsys):
    folder = tmp_path / "one" / "data"
    folder.mkdir(parents=True)
    out = tmp_path / "parts"

    def says(*sources):
        assert pack.main(["pack", *map(str, sources), "--out", str(out)]) == 2
        assert not out.exists()
        return capsys.readouterr().err

    assert "hold no file" in says(folder)
    (folder / "link").symlink_to(tmp_path)
    assert "is a link" in says(folder)
    assert "does not exist" in says(tmp_path / "nothing")
    shutil.copytree(tmp_path / "one" / "data", tmp_path / "two" / "data", symlinks=True)
    (folder / "link").unlink()
    (folder / "file").touch()
    assert "two sources are called 'data'" in says(folder, tmp_path / "two" / "data")


@pytest.mark.parametrize("size", ["0", "-1", "64", "nan"])
def test_a_part_stays_below_what_a_transfer_takes(pack, tmp_path, size, capsys):
    with pytest.raises(SystemExit) as stop:
        pack.main(["pack", str(tmp_path), "--out", str(tmp_path / "parts"), "--part-mib", size])
    assert stop.value.code == 2
    assert "at most 63" in capsys.readouterr().err


def write_wheel(folder, name, requires):
    lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", *(f"Requires-Dist: {need}" for need in requires)]
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}-1.0.dist-info/METADATA", "\n".join(lines) + "\n")


def test_wheels_are_downloaded_for_the_other_python_and_what_they_lack_is_listed(pack, tmp_path, monkeypatch, capsys):
    commands = []

    def download(command, **_):
        commands.append(command)
        write_wheel(tmp_path, "Some_Thing", ["other.part>=2", "torch (>=2)", "docs; extra == 'docs'"])
        write_wheel(tmp_path, "other-part", ["typing-extensions; python_version < '3.13'"])
        return pack.subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(pack.subprocess, "run", download)
    ask = [
        "wheels",
        "some-thing==1.0",
        "other-part",
        "--python",
        "3.12",
        "--out",
        str(tmp_path),
        "--platform",
        "linux_a",
    ]
    assert pack.main(ask) == 0
    (command,) = commands
    assert command[1:4] == ["-m", "pip", "download"]
    for option, value in (("--python-version", "3.12"), ("--platform", "linux_a"), ("--only-binary", ":all:")):
        assert command[command.index(option) + 1] == value
    assert "--no-deps" in command
    assert command[-2:] == ["some-thing==1.0", "other-part"]
    assert capsys.readouterr().out.splitlines() == [
        "the machine itself must have:",
        "Some_Thing 1.0: torch (>=2)",
        "other-part 1.0: typing-extensions; python_version < '3.13'",
    ]


def test_a_wheel_that_does_not_exist_is_one_line_after_those_of_pip(pack, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pack.subprocess, "run", lambda command: pack.subprocess.CompletedProcess(command, 1))
    assert pack.main(["wheels", "nothing", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("pack.py: pip found no wheel for Python 3.12")
