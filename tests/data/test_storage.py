"""The same verbs on a local folder and on S3 (moto's server): whole files or none, clear errors."""

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from finephys.data import storage


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        boto3.client("s3").create_bucket(Bucket="finephys")
        yield "s3://finephys"
    server.stop()


@pytest.fixture(params=["local", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "root")
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}"


def test_files(url: str) -> None:
    assert not storage.exists(url)
    assert storage.list_files(url) == []
    storage.write_bytes(storage.join(url, "b.json"), b"one")
    storage.write_bytes(storage.join(url, "b.json"), b"two")
    storage.write_bytes(storage.join(url, "a.parquet"), b"")
    storage.write_bytes(storage.join(url, "deep", "c.json"), b"three")
    assert storage.read_bytes(storage.join(url, "b.json")) == b"two"
    assert storage.list_files(url) == [storage.join(url, "a.parquet"), storage.join(url, "b.json")]
    assert storage.list_files(url, ".json") == [storage.join(url, "b.json")]
    assert storage.list_folders(url) == [storage.join(url, "deep")]
    assert storage.list_shards(url) == [storage.join(url, "a.parquet")]
    storage.delete_file(storage.join(url, "b.json"))
    assert not storage.exists(storage.join(url, "b.json"))
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(url, "b.json"))


def test_folders(url: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "unet").mkdir(parents=True)
    (source / "unet" / "config.json").write_text("{}")
    (source / "model_index.json").write_text("[]")
    storage.upload_folder(source, url)
    storage.download_folder(url, tmp_path / "copy")
    assert (tmp_path / "copy" / "unet" / "config.json").read_text() == "{}"
    storage.delete_folder(url)
    assert not storage.exists(storage.join(url, "model_index.json"))
    with pytest.raises(FileNotFoundError):
        storage.download_folder(url, tmp_path / "nothing")


def test_a_question_leaves_nothing_behind(url: str, tmp_path: Path) -> None:
    storage.check_writable(storage.join(url, "run"))
    assert storage.list_files(storage.join(url, "run")) == []
    assert not (tmp_path / "root").exists()


def test_what_cannot_be_written_is_named(tmp_path: Path, bucket: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file is a file"):
        storage.check_writable(str(tmp_path / "file" / "run"))
    with pytest.raises(OSError, match="s3://nowhere/run cannot be written"):
        storage.check_writable("s3://nowhere/run")


def test_unknown_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has scheme 'gs'"):
        storage.exists("gs://bucket/x")
    with pytest.raises(ValueError, match="names no bucket"):
        storage.exists("s3:///x")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        storage.list_shards(str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match="holds no"):
        storage.list_shards(str(tmp_path))
