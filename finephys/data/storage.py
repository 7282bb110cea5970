"""Storage by URL: a folder of this machine or an S3 bucket, with one set of verbs for both.

Path:    everywhere that bytes enter or leave
Letters: none
Units:   bytes

A URL is a plain path, file:///path or s3://bucket/key. S3's endpoint, region and credentials come from the usual
environment variables (AWS_ENDPOINT_URL, AWS_DEFAULT_REGION, AWS_ACCESS_KEY_ID, ...), read in this module only.
A reader never sees half a file: local files are published by rename, S3 objects by their single put.
"""

import functools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from pyarrow import fs

# Part of the name of a local file that is still being written; list_files never shows one.
WRITING_SUFFIX = ".writing"


def open_filesystem(url: str) -> tuple[fs.FileSystem, str]:
    """The pyarrow filesystem that holds `url`, and the path of `url` in it.

    Raises ValueError on a scheme other than none, file:// or s3://, and on an S3 URL without a bucket.
    """
    if is_local(url):
        return fs.LocalFileSystem(), str(local_path(url))
    parsed = urlparse(url)
    if parsed.scheme != "s3":
        raise ValueError(f"storage URL {url!r} has scheme {parsed.scheme!r}, wanted a plain path, file:// or s3://")
    if not parsed.netloc:
        raise ValueError(f"storage URL {url!r} names no bucket, wanted s3://bucket/key")
    # allow_bucket_creation stays off: a mistyped bucket must fail, not appear.
    filesystem = fs.S3FileSystem(
        endpoint_override=os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        # Arrow's own default of 3 s gives up on servers that are merely busy.
        request_timeout=30,
    )
    return filesystem, (parsed.netloc + parsed.path).rstrip("/")


def is_local(url: str) -> bool:
    """Whether `url` lies on this machine's own file system."""
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> Path:
    """The absolute path of a local URL. Raises ValueError on any other."""
    if not is_local(url):
        raise ValueError(f"storage URL {url!r} is not local")
    return Path(url.removeprefix("file://")).expanduser().absolute()


def join(url: str, *names: str) -> str:
    """The URL of something below `url`."""
    return "/".join([url.rstrip("/") or "/", *names])


def exists(url: str) -> bool:
    """Whether a file or a folder lies at `url`."""
    filesystem, path = open_filesystem(url)
    return bool(filesystem.get_file_info(path).type != fs.FileType.NotFound)


def list_files(url: str, suffix: str = "") -> list[str]:
    """URLs, sorted, of the files in the folder `url` whose names end with `suffix`. An absent folder is empty."""
    return [join(url, name) for name, kind in _list(url) if kind == fs.FileType.File and name.endswith(suffix)]


def list_folders(url: str) -> list[str]:
    """URLs of the folders directly in the folder `url`, sorted. An absent folder is empty."""
    return [join(url, name) for name, kind in _list(url) if kind == fs.FileType.Directory]


def list_shards(url: str) -> list[str]:
    """URLs of the Parquet shards in the folder `url`, or `url` itself where it is one shard.

    Raises FileNotFoundError where nothing lies at `url` or it holds no shard.
    """
    if not exists(url):
        raise FileNotFoundError(f"data folder {url} does not exist")
    if url.endswith(".parquet"):
        return [url]
    shards = list_files(url, ".parquet")
    if not shards:
        raise FileNotFoundError(f"data folder {url} holds no *.parquet shard")
    return shards


def read_bytes(url: str) -> bytes:
    """What the file at `url` holds. Raises FileNotFoundError."""
    filesystem, path = open_filesystem(url)
    try:
        with filesystem.open_input_stream(path) as stream:
            return bytes(stream.read())
    except OSError as error:
        # Arrow looks whether the file is there, and then reads: one deleted in between is no FileNotFoundError to it.
        if isinstance(error, FileNotFoundError) or exists(url):
            raise
        raise FileNotFoundError(f"{url} does not exist") from error


def write_bytes(url: str, data: bytes) -> None:
    """Write a file, folders included; a reader sees the old file or the new one, never a part."""
    filesystem, path = open_filesystem(url)
    if not is_local(url):
        with filesystem.open_output_stream(path) as stream:
            stream.write(data)
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    temporary = f"{path}.{os.getpid()}{WRITING_SUFFIX}"
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def create_bytes(url: str, data: bytes) -> bool:
    """Write a file that does not exist yet, whole; False, and nothing is changed, where one does.

    Of several that create one file at once exactly one is told True, on one machine or many: a hard link decides on a
    file system, If-None-Match in S3 (AWS, MinIO >= 2024-11, moto), which pyarrow cannot send and s3fs can.
    """
    if not is_local(url):
        try:
            _s3fs().pipe_file(url.removeprefix("s3://"), data, mode="create")
        except FileExistsError:
            return False
        return True
    path = local_path(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=WRITING_SUFFIX) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        try:
            os.link(file.name, path)
        except FileExistsError:
            return False
    return True


def upload_folder(folder: Path, url: str) -> None:
    """Copy every file below the local `folder` to `url`, each one whole or not at all."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        destination = join(url, file.relative_to(folder).as_posix())
        if not is_local(url):
            write_bytes(destination, file.read_bytes())
            continue
        target = local_path(destination)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = f"{target}.{os.getpid()}{WRITING_SUFFIX}"
        shutil.copyfile(file, temporary)
        os.replace(temporary, target)


def download_folder(url: str, folder: Path) -> None:
    """Copy every file below `url` into the local `folder`. Raises FileNotFoundError where `url` holds none."""
    filesystem, root = open_filesystem(url)
    found = filesystem.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
    files = [info for info in found if info.type == fs.FileType.File and not info.path.endswith(WRITING_SUFFIX)]
    if not files:
        raise FileNotFoundError(f"folder {url} does not exist or is empty")
    for info in files:
        target = folder / os.path.relpath(info.path, root)
        target.parent.mkdir(parents=True, exist_ok=True)
        with filesystem.open_input_stream(info.path) as source, open(target, "wb") as sink:
            shutil.copyfileobj(source, sink)


def delete_file(url: str) -> None:
    """Remove the file at `url`. Raises FileNotFoundError."""
    filesystem, path = open_filesystem(url)
    filesystem.delete_file(path)


def delete_folder(url: str) -> None:
    """Remove the folder at `url` and all below it; nothing happens where there is none."""
    filesystem, path = open_filesystem(url)
    if filesystem.get_file_info(path).type == fs.FileType.Directory:
        filesystem.delete_dir(path)


def check_writable(url: str) -> None:
    """Raise OSError, naming `url`, unless a file can be written into the folder `url`. Leaves nothing behind."""
    filesystem, path = open_filesystem(url)
    if is_local(url):
        # The nearest folder that exists must admit new names; nothing is created for a question.
        folder = Path(path)
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise OSError(f"output {url} cannot be written: {folder} is a file")
        try:
            with tempfile.NamedTemporaryFile(dir=folder):
                return
        except OSError as error:
            raise OSError(f"output {url} cannot be written: {error.strerror}") from error
    probe = f"{path}/probe{WRITING_SUFFIX}"
    try:
        with filesystem.open_output_stream(probe) as stream:
            stream.write(b"")
        filesystem.delete_file(probe)
    except OSError as error:
        raise OSError(f"output {url} cannot be written: {str(error).splitlines()[0]}") from error


@functools.cache
def _s3fs() -> Any:
    """Reads the same environment variables as open_filesystem does, and keeps no listing of its own."""
    # Seconds that whoever works on a folder need not wait for.
    import s3fs

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return s3fs.S3FileSystem(endpoint_url=endpoint, use_listings_cache=False)


def _list(url: str) -> list[tuple[str, fs.FileType]]:
    filesystem, path = open_filesystem(url)
    found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted((info.base_name, info.type) for info in found if not info.base_name.endswith(WRITING_SUFFIX))
