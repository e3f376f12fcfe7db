"""The shared store: finished outputs and runs pass from machine to machine through an S3 server on localhost."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import s3fs

from tests.s3 import SECRET, Bucket
from tripletune.cli.main import main
from tripletune.config import RunConfig, StoreConfig
from tripletune.errors import ConfigError, InputError, MissingArtifactError, UserError
from tripletune.pipeline.handover import go_on
from tripletune.pipeline.resolve import resolve
from tripletune.store import shared
from tripletune.store.objects import Store
from tripletune.store.paths import RunPaths, read_manifest
from tripletune.store.retries import Patience
from tripletune.store.runs import RunRecord, read_run, share_run, shared_store, write_run
from tripletune.tracking import recorded_run

FINGERPRINT = "0123456789abcdef" * 2
FOLDER = f"pre/toy/split/{FINGERPRINT}"
FILES = {"rows.parquet.bin": b"rows", "label=train/part 1.bin": b"more rows", "label=test/empty": b""}


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "PATIENCE", Patience(tries=2, pause=0.0))


def machine(root: Path, bucket: Bucket) -> RunPaths:
    fingerprints = {"split": FINGERPRINT, "ingest": FINGERPRINT[::-1]}
    return RunPaths(root=root, dataset="toy", fingerprints=fingerprints, shared=bucket.url("pre"))


def write_files(work: Path, files: dict[str, bytes] = FILES) -> dict[str, int]:
    for name, content in files.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(content)
    return {"files": len(files)}


def refuse_to_make(work: Path) -> dict[str, int]:
    raise AssertionError("made again")


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pushed(tmp_path: Path, bucket: Bucket) -> Path:
    """The folder of an output that a machine has made and pushed."""
    paths = machine(tmp_path / "maker", bucket)
    folder = paths.build("split", write_files)
    paths.share("split")
    return folder


def silence(patch: pytest.MonkeyPatch) -> None:
    """Nothing answers at the store's address."""
    patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    patch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()


def refusal(act: Callable[[], object], kind: type[UserError] = InputError) -> str:
    with pytest.raises(kind) as caught:
        act()
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
    return str(caught.value)


# --- outputs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", ["require", "is_done", "build"])
def test_what_one_machine_made_another_has_with_the_same_bytes(tmp_path, bucket, ask):
    made = pushed(tmp_path, bucket)
    other = machine(tmp_path / "other", bucket)
    arguments = (refuse_to_make,) if ask == "build" else ()
    assert getattr(other, ask)("split", *arguments)
    assert content_of(other.folder("split")) == content_of(made)
    assert [path.name for path in other.folder("split").parent.iterdir() if path.is_dir()] == [FINGERPRINT]


def test_only_what_is_asked_for_is_fetched(tmp_path, bucket):
    maker = machine(tmp_path / "maker", bucket)
    for stage in ("ingest", "split"):
        maker.build(stage, write_files)
        maker.share(stage)
    other = machine(tmp_path / "other", bucket)
    other.require("split")
    assert [path.name for path in (tmp_path / "other" / "toy").iterdir()] == ["split"]
    assert not other.is_here("ingest")
    assert other.is_shared("ingest")


def test_an_output_that_no_machine_has_is_made_here_and_required_in_vain(tmp_path, bucket):
    paths = machine(tmp_path, bucket)
    message = refusal(lambda: paths.require("split"), MissingArtifactError)
    assert f"and {bucket.url('pre')})" in message
    paths.build("split", write_files)
    assert bucket.names() == []


def test_the_manifest_is_uploaded_last_and_never_replaced(tmp_path, bucket, monkeypatch):
    uploaded = []
    upload = Store.upload

    def note(self: Store, path: Path, *report: Any) -> None:
        uploaded.append(path.name)
        upload(self, path, *report)

    monkeypatch.setattr(Store, "upload", note)
    folder = pushed(tmp_path, bucket)
    assert sorted(uploaded[:-1]) == sorted(Path(name).name for name in FILES)
    assert uploaded[-1] == "manifest.json"
    before = bucket.get(f"{FOLDER}/manifest.json")
    other = machine(tmp_path / "other", bucket)
    shutil.copytree(folder, other.folder("split"))
    (other.folder("split") / "manifest.json").write_bytes(before.replace(b'"facts"', b' "facts"'))
    other.share("split")
    assert len(uploaded) == len(FILES) + 1
    assert bucket.get(f"{FOLDER}/manifest.json") == before


def test_a_push_that_was_killed_is_not_seen_and_goes_on_where_it_was(tmp_path, bucket, monkeypatch):
    paths = machine(tmp_path / "maker", bucket)
    paths.build("split", write_files)
    upload, done = Store.upload, []

    def die(self: Store, path: Path, *report: Any) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(path.name)
        upload(self, path, *report)

    with monkeypatch.context() as dying:
        dying.setattr(Store, "upload", die)
        with pytest.raises(KeyboardInterrupt):
            paths.share("split")
    assert len(bucket.names()) == 2
    other = machine(tmp_path / "other", bucket)
    assert not other.is_done("split")
    monkeypatch.setattr(Store, "upload", lambda self, path, *report: (done.append(path.name), upload(self, path)))
    paths.share("split")
    assert len(done) == len(FILES) + 1
    assert other.is_done("split")


def test_a_file_that_is_damaged_here_is_not_pushed(tmp_path, bucket):
    paths = machine(tmp_path, bucket)
    folder = paths.build("split", write_files)
    (folder / "rows.parquet.bin").write_bytes(b"swor")
    assert "rows.parquet.bin is damaged; remove" in refusal(lambda: paths.share("split"))
    assert bucket.names() == []


def key_of(bucket: Bucket, name: str) -> str:
    manifest = json.loads(bucket.get(f"{FOLDER}/manifest.json"))
    return f"{FOLDER}/{manifest['files'][name]['sha256']}"


@pytest.mark.parametrize("body", [b"more swor", b"more", None], ids=["other bytes", "cut", "gone"])
def test_a_damaged_output_is_named_and_never_published_here(tmp_path, bucket, body):
    pushed(tmp_path, bucket)
    key = key_of(bucket, "label=train/part 1.bin")
    bucket.client.delete_object(Bucket=bucket.name, Key=key)
    if body is not None:
        bucket.put(**{key: body})
    other = machine(tmp_path / "other", bucket)
    for act in (lambda: other.require("split"), lambda: other.build("split", refuse_to_make)):
        message = refusal(act)
        assert f"{bucket.url(FOLDER)} is damaged: label=train/part 1.bin ({bucket.url(key)})" in message
        assert "delete this folder in the store" in message
        assert not other.is_here("split")
        assert not other.folder("split").exists()


NAMES = (
    "../out",
    "/tmp/out",
    "a/../../out",
    "a//out",
    "./out",
    "a/",
    "",
    "..",
    "a\\out",
    "a\nout",
    "manifest.json",
    "x.part",
)


def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path, bucket):
    pushed(tmp_path, bucket)
    manifest = json.loads(bucket.get(f"{FOLDER}/manifest.json"))
    good = manifest["files"].pop("rows.parquet.bin")
    other = machine(tmp_path / "other", bucket)
    for name in NAMES:
        bad = manifest | {"files": manifest["files"] | {name: good}}
        bucket.put(**{f"{FOLDER}/manifest.json": json.dumps(bad).encode()})
        assert f"{name!r} is no name of a file below the folder" in refusal(lambda: other.require("split"))
    assert not [path for path in (tmp_path / "other").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert not (tmp_path / "out").exists()


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "another stage": lambda manifest: manifest.update(stage="ingest"),
    "another fingerprint": lambda manifest: manifest.update(fingerprint=FINGERPRINT[::-1]),
    "no files": lambda manifest: manifest.pop("files"),
    "a list of files": lambda manifest: manifest.update(files=["rows.parquet.bin"]),
    "no size": lambda manifest: manifest["files"]["rows.parquet.bin"].update(bytes="4"),
    "no hash": lambda manifest: manifest["files"]["rows.parquet.bin"].update(sha256="../x"),
    "a file as a folder": lambda manifest: manifest["files"].update(
        {"rows.parquet.bin/x": manifest["files"]["rows.parquet.bin"]}
    ),
}


def test_a_manifest_that_is_none_of_this_output_is_refused(tmp_path, bucket):
    pushed(tmp_path, bucket)
    good = bucket.get(f"{FOLDER}/manifest.json")
    other = machine(tmp_path / "other", bucket)
    for change, act in CHANGES.items():
        manifest = json.loads(good)
        act(manifest)
        bucket.put(**{f"{FOLDER}/manifest.json": json.dumps(manifest).encode()})
        message = refusal(lambda: other.require("split"))
        assert "is damaged: the manifest cannot be used" in message, change
    bucket.put(**{f"{FOLDER}/manifest.json": b"<html>"})
    assert "is damaged: the manifest cannot be used" in refusal(lambda: other.require("split"))
    assert not other.is_here("split")


def test_a_fetch_that_was_killed_goes_on_where_it_was_and_keeps_nothing_else(tmp_path, bucket, monkeypatch):
    pushed(tmp_path, bucket)
    other = machine(tmp_path / "other", bucket)
    chunks, read = Store.chunks, []

    def note(self: Store, first: int) -> Any:
        if self.url.endswith("manifest.json"):
            return chunks(self, first)
        if len(read) == 2:
            raise KeyboardInterrupt
        read.append(self.url)
        return chunks(self, first)

    with monkeypatch.context() as dying:
        dying.setattr(Store, "chunks", note)
        with pytest.raises(KeyboardInterrupt):
            other.require("split")
    assert not other.is_here("split")
    work = other.folder("split").with_name(f"{FINGERPRINT}.fetch.work")
    (work / "stranger").write_bytes(b"of another output")
    (work / "link").symlink_to(tmp_path)
    monkeypatch.setattr(Store, "chunks", lambda self, first: (read.append(self.url), chunks(self, first))[1])
    folder = other.require("split")
    assert len([url for url in read if not url.endswith("manifest.json")]) == len(FILES)
    assert content_of(folder).keys() == {*FILES, "manifest.json"}
    assert not (folder / "link").is_symlink()


def test_two_machines_that_push_at_once_leave_the_output_of_one_of_them(tmp_path, bucket):
    makers = [machine(tmp_path / name, bucket) for name in "ab"]
    for number, paths in enumerate(makers):  # bytes differ, as after a training on a GPU
        mine = {name: content + bytes([number]) for name, content in FILES.items()}
        paths.build("split", lambda work, mine=mine: write_files(work, mine))
    threads = [threading.Thread(target=paths.share, args=("split",)) for paths in makers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fetched = content_of(machine(tmp_path / "other", bucket).require("split"))
    assert fetched in [content_of(paths.folder("split")) for paths in makers]


def test_a_damaged_local_output_is_replaced_by_the_shared_one(tmp_path, bucket):
    pushed(tmp_path, bucket)
    other = machine(tmp_path / "other", bucket)
    (other.require("split") / "rows.parquet.bin").unlink()
    assert content_of(other.build("split", refuse_to_make)).keys() == {*FILES, "manifest.json"}


def test_a_store_that_does_not_answer_is_one_line_and_exit_code_2(tmp_path, bucket, monkeypatch, capsys):
    silence(monkeypatch)
    monkeypatch.setenv("TRIPLETUNE_SHARED_STORE", bucket.url("pre"))
    paths = machine(tmp_path, bucket)
    assert "cannot be read" in refusal(lambda: paths.require("split"))
    config = tmp_path / "toy.toml"
    config.write_text('dataset = "toy"\n')
    assert main(["split", "--config", str(config), "--artifacts", str(tmp_path / "none")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("tripletune: ")] == lines[-1:]
    assert "check the network and AWS_ENDPOINT_URL" in lines[-1]


def test_refused_rights_are_one_line(tmp_path, bucket, monkeypatch):
    import moto.settings

    monkeypatch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    assert "is refused by the store" in refusal(lambda: machine(tmp_path, bucket).is_done("split"))


# --- the address ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address", [f"s3://AKIA:{SECRET}@bucket/x", f"s3://bucket/x?X-Amz-Signature={SECRET}", f"s3://a:b/{SECRET}@c/x"]
)
def test_an_address_that_may_hold_a_secret_is_refused_and_not_repeated(monkeypatch, address):
    message = refusal(lambda: resolve(config(store={"shared": address}), Path("nowhere")), ConfigError)
    assert message.startswith("store.shared has an @, or a ? and later a =")
    monkeypatch.setenv("TRIPLETUNE_SHARED_STORE", address)
    assert "TRIPLETUNE_SHARED_STORE has an @" in refusal(lambda: shared_store(StoreConfig()), ConfigError)


@pytest.mark.parametrize("address", ["/mnt/disk", "http://host/x", "s3://", "s3://*/x", "s3://bucket/a*", "bucket/x"])
def test_an_address_of_no_bucket_is_refused(address):
    assert f"store.shared = {address!r}: give a bucket" in refusal(
        lambda: shared_store(StoreConfig(shared=address)), ConfigError
    )


def test_the_config_goes_before_the_environment(monkeypatch):
    assert shared_store(StoreConfig()) == ""
    monkeypatch.setenv("TRIPLETUNE_SHARED_STORE", "s3://of-the-machine/x/")
    assert shared_store(StoreConfig()) == "s3://of-the-machine/x"
    assert shared_store(StoreConfig(shared="gs://of-the-run")) == "gs://of-the-run"


# --- runs -------------------------------------------------------------------------------------------------------------


def config(**settings: object) -> RunConfig:
    return RunConfig.model_validate({"dataset": "toy", **settings})


@pytest.fixture
def release(tmp_path: Path) -> Path:
    folder = tmp_path / "release"
    folder.mkdir()
    for table in ("ratings", "movies", "tags", "links"):
        (folder / f"{table}.csv").write_text("userId,movieId\n")
    return folder


def begin(root: Path, settings: RunConfig) -> tuple[str, RunPaths]:
    """A run whose shards are made, as its file says."""
    paths, name = resolve(settings, root), "toy-20261129-041500-1f3a"
    record = RunRecord(
        name=name,
        dataset="toy",
        status="completed",
        started="2026-11-29T04:15:00Z",
        config=settings.model_dump(mode="json"),
        fingerprints=dict(paths.fingerprints),
        stages={"generate": "made"},
    )
    write_run(root, record)
    share_run(root, name, paths.shared)
    return name, paths


def test_a_run_is_gone_on_with_by_its_name_where_none_of_its_inputs_is(tmp_path, bucket, release):
    settings = config(source={"movielens": str(release)}, store={"shared": bucket.url("pre")})
    name, begun = begin(tmp_path / "cpu", settings)
    shutil.rmtree(release)
    with pytest.raises(InputError, match="movielens"):
        resolve(settings, tmp_path / "gpu")
    record, recorded, paths = go_on(name, "finetune", settings.store, tmp_path / "gpu")
    assert (record.name, record.status, recorded) == (name, "completed", settings)
    assert paths.fingerprints == begun.fingerprints
    assert paths.shared == bucket.url("pre")
    assert paths.ingredients.keys() == {"finetune", "rank", "evaluate"}
    assert paths.ingredients["finetune"] == begun.ingredients["finetune"]


def test_what_this_machine_computes_is_named_by_what_this_machine_is(tmp_path, bucket, monkeypatch):
    settings = config(finetune={"model": "smollm2-135m"}, store={"shared": bucket.url("pre")})
    name, begun = begin(tmp_path / "cpu", settings)
    before = begun.ingredients["finetune"]["inputs"]["processor/bfloat16"]
    monkeypatch.setattr("tripletune.pipeline.resolve.has_bfloat16", lambda: before == "no")
    _, _, for_finetune = go_on(name, "finetune", settings.store, tmp_path / "gpu")
    _, _, for_rank = go_on(name, "rank", settings.store, tmp_path / "gpu")
    assert for_finetune.fingerprints["generate"] == begun.fingerprints["generate"]
    assert for_finetune.fingerprints["finetune"] != begun.fingerprints["finetune"]
    assert for_rank.fingerprints["finetune"] == begun.fingerprints["finetune"]


def test_parts_of_a_run_on_two_machines_are_one_record(tmp_path, bucket, monkeypatch):
    settings = config(store={"shared": bucket.url("pre")})
    name, _ = begin(tmp_path / "cpu", settings)
    again, settings, paths = go_on(name, "finetune", settings.store, tmp_path / "gpu")
    with recorded_run(settings, paths, {}, again) as (same, tracker):
        assert same == name
        assert read_run(tmp_path / "third", name, store=settings.store).status == "running"
        assert tracker.client().get_run(tracker.parent_run_id).info.run_name == name
    last = read_run(tmp_path / "third", name, store=settings.store)
    assert (last.status, last.started, last.mlflow_run_id) == ("completed", again.started, tracker.parent_run_id)
    assert last.stages == {"generate": "made"}

    def fail() -> None:
        with recorded_run(settings, paths, {}, last) as (_, reopened):
            assert reopened.parent_run_id == tracker.parent_run_id
            raise ZeroDivisionError("of a stage")

    with pytest.raises(ZeroDivisionError):
        fail()
    failed = read_run(tmp_path / "third", name, store=settings.store)
    assert (failed.status, failed.error) == ("failed", "of a stage")

    def fail_out_of_reach() -> None:
        with recorded_run(settings, paths, {}, last):
            silence(monkeypatch)
            raise ZeroDivisionError("of a stage")

    with pytest.raises(ZeroDivisionError):  # the reason does not give way to trouble with the store
        fail_out_of_reach()
    message = refusal(fail)  # and not ZeroDivisionError: a run whose store does not answer does not begin
    assert "cannot be read" in message
    assert read_run(tmp_path / "gpu", name="").status == "failed"


def test_a_run_file_from_elsewhere_whose_names_are_paths_is_refused(tmp_path, bucket):
    record = {"name": "toy-1", "dataset": "toy", "status": "completed", "started": "", "config": {}, "fingerprints": {}}
    store = StoreConfig(shared=bucket.url("pre"))
    for change in (
        {"name": "toy-2"},
        {"dataset": "../../elsewhere"},
        {"fingerprints": {"split": "../../elsewhere"}},
        {"fingerprints": {"../split": FINGERPRINT}},
        {"config": None},
    ):
        bucket.put(**{"pre/runs/toy-1.json": json.dumps(record | change).encode()})
        message = refusal(lambda: read_run(tmp_path, "toy-1", store=store))
        assert "is no file of run 'toy-1'" in message, change


def test_a_name_that_no_machine_has_is_named_with_both_places(tmp_path, bucket):
    store = StoreConfig(shared=bucket.url("pre"))
    for name in ("toy-1", "../toy-1"):
        message = refusal(lambda name=name: read_run(tmp_path, name, store=store), MissingArtifactError)
        assert f"no run {name!r} in {tmp_path} or {bucket.url('pre')}" in message


def test_plan_says_what_would_be_fetched_and_gc_what_it_leaves(tmp_path, bucket, monkeypatch, capsys):
    monkeypatch.setenv("TRIPLETUNE_SHARED_STORE", bucket.url("pre"))
    preset = tmp_path / "toy.toml"
    preset.write_text('dataset = "toy"\n')
    paths = resolve(config(), tmp_path / "cpu")
    paths.build("ingest", write_files)
    paths.share("ingest")
    assert main(["plan", "--config", str(preset), "--artifacts", str(tmp_path / "gpu")]) == 0
    planned = [line for line in capsys.readouterr().out.splitlines() if "fetch" in line]
    assert len(planned) == 1
    assert "ingest" in planned[0]
    assert not (tmp_path / "gpu").exists()
    record = RunRecord(
        name="toy-1",
        dataset="toy",
        status="completed",
        started="2026",
        config={},
        fingerprints=dict(paths.fingerprints),
    )
    write_run(tmp_path / "cpu", record)
    share_run(tmp_path / "cpu", "toy-1", paths.shared)
    before = bucket.names()
    (tmp_path / "cpu" / "toy" / "ingest" / f"{FINGERPRINT}.fetch.work").mkdir()
    assert main(["gc", "--delete", "--artifacts", str(tmp_path / "cpu")]) == 0
    assert f"{bucket.url('pre')} is not touched" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "cpu" / "toy" / "ingest").iterdir() if path.is_dir()] == [
        paths.fingerprints["ingest"]
    ]
    assert bucket.names() == before
    assert read_manifest(paths.folder("ingest")) is not None
