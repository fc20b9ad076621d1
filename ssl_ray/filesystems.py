"""File systems by URI: the one door to object stores, for data, run folders, checkpoints and weights.

An object store fails now and then. Its client repeats a request that is refused (503 SlowDown, 500), not answered or
cut off: `REQUEST_RETRIES` times in about a minute, a write part by part. What it does not see is found and repeated
here: an answer of fewer bytes than were asked for (pyarrow would hand out whatever lies in memory in place of the
rest), a listing that is not whole, and a refusal that is longer than the few bytes which were to be read (pyarrow has
no place for it, and gives up). What is missing or forbidden is said at once.
"""

# ruff: noqa: D102 (what pyarrow calls is described there)
import logging
import random
import re
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from ssl_ray.errors import StoreError, UserError
from ssl_ray.redact import redact

Result = TypeVar("Result")
logger = logging.getLogger(__name__)

# The client waits 25 ms before the first repetition and twice as long before each further one: 51 s in all. Of the
# strategies of AWS it is the one without a budget for all requests together, which a store that slows 32 readers down
# soon exhausts: then reads fail that were tried once.
REQUEST_RETRIES = 11
CONNECT_TIMEOUT_S = 5.0
# Without a single byte.
SILENCE_TIMEOUT_S = 10.0
# What the client does not see fail is asked for this often, with pauses of 0.25 to 0.5 s, 0.5 to 1 s, ... between.
ATTEMPTS = 8
BACKOFF_S = 0.5
CHUNK_BYTES = 16 * 2**20

_NOT_SEEN = re.compile(r"XML_ERROR_PARSING|XML Parse Error|Failed to flush response stream")
# What the store says, and what the user can do about it.
_ADVICE = (
    (
        r"NO_SUCH_BUCKET",
        "there is no such bucket; check its name, and endpoint_override and region in the URI",
    ),
    (
        r"ACCESS_DENIED|HTTP status 40[13]|INVALID_ACCESS_KEY|SIGNATURE|TOKEN",
        "access denied; give credentials that may do this, in the environment (AWS_ACCESS_KEY_ID, "
        "AWS_SECRET_ACCESS_KEY, AWS_PROFILE) or by the machine's role, on every node",
    ),
    (
        r"HTTP status 3\d\d",
        "the bucket lives elsewhere; give its region or endpoint in the URI, as in ?region=eu-west-1",
    ),
    (
        r"SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|NETWORK_CONNECTION|TIMEOUT|HTTP status 5\d\d|not whole",
        "check the endpoint and the network, and start again: what was done is kept",
    ),
)


class NotWhole(OSError):
    """An answer holds less than was asked for."""


def open_uri(uri: str) -> tuple[Any, str]:
    """(pyarrow file system, path in it) of an absolute local path or a URI (s3://, gs://, abfs://, hdfs://, file://).

    The query of an s3:// URI may hold region, endpoint_override, scheme and what else pyarrow knows. Small when
    pickled: credentials are taken from the environment of the process that reads. Raises UserError for a URI with a
    password in it, ValueError and OSError for one that cannot be opened.
    """
    if "://" not in uri:
        return fs.LocalFileSystem(), uri
    if (shown := redact(uri)) != uri and ":" in uri.partition("://")[2].partition("@")[0]:
        raise UserError(
            f"{shown} holds credentials; put them into the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
            "GOOGLE_APPLICATION_CREDENTIALS, ...)"
        )
    parts = urlsplit(uri)
    if parts.scheme == "s3":
        address = parts._replace(path="", fragment="").geturl()
        _client(address)  # what is wrong with the URI is said now
        return fs.PyFileSystem(ObjectStore(address)), f"{parts.hostname}{unquote(parts.path)}".rstrip("/")
    if parts.scheme in ("gs", "gcs") and "retry_limit_seconds" not in parts.query:
        uri += f"{'&' if parts.query else '?'}retry_limit_seconds=60"
    filesystem, path = fs.FileSystem.from_uri(uri)
    return filesystem, path


def upload(folder: str, filesystem: Any, path: str) -> None:
    """Copies the files of a local folder to a folder of `filesystem`. Raises OSError unless all of it is there.

    Of pyarrow, `copy_files` does not close what it writes: an upload whose last part fails passes without a word.
    """
    targets = {
        f"{path}/{f.relative_to(folder).as_posix()}": f for f in Path(folder).rglob("*") if f.is_file()
    }
    for parent in {path, *(target.rpartition("/")[0] for target in targets)}:
        filesystem.create_dir(parent, recursive=True)
    for target, file in targets.items():
        with file.open("rb") as source, filesystem.open_output_stream(target) as stream:
            while chunk := source.read(CHUNK_BYTES):
                stream.write(chunk)
        if (size := filesystem.get_file_info(target).size) != (whole := file.stat().st_size):
            raise NotWhole(f"{target}: {size} of {whole:,} bytes arrived")


@lru_cache
def _client(address: str) -> Any:
    """Pyarrow's client of a bucket (`s3://bucket?query`), with our patience."""
    client, _ = fs.FileSystem.from_uri(address)
    make, (options,) = client.__reduce__()
    options |= {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "request_timeout": SILENCE_TIMEOUT_S,
        "retry_strategy": fs.AwsDefaultS3RetryStrategy(max_attempts=REQUEST_RETRIES),
        # Written in the background, a checkpoint would pile up in memory, and copying one can block for ever
        # (apache/arrow#32372).
        "background_writes": False,
    }
    return make(options)


class ObjectStore(fs.FileSystemHandler):  # type: ignore[misc]
    """An S3 bucket, whose reads are checked. Equal and picklable by its address alone."""

    def __init__(self, address: str) -> None:
        self.address = address

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectStore) and self.address == other.address

    def __hash__(self) -> int:
        return hash(self.address)

    def get_type_name(self) -> str:
        return "s3"

    def normalize_path(self, path: str) -> str:
        return path

    def _do(self, path: str, call: Callable[[Any], Result]) -> Result:
        return persistent(f"s3://{path}", lambda: call(_client(self.address)))

    def get_file_info(self, paths: list[str]) -> Any:
        return self._do(paths[0] if paths else "", lambda client: client.get_file_info(paths))

    def get_file_info_selector(self, selector: Any) -> Any:
        return self._do(selector.base_dir, lambda client: client.get_file_info(selector))

    def create_dir(self, path: str, recursive: bool) -> None:
        self._do(path, lambda client: client.create_dir(path, recursive=recursive))

    def delete_dir(self, path: str) -> None:
        self._do(path, lambda client: client.delete_dir(path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self._do(path, lambda client: client.delete_dir_contents(path, missing_dir_ok=missing_dir_ok))

    def delete_root_dir_contents(self) -> None:
        raise StoreError(f"{self.address}: a whole bucket is not emptied")

    def delete_file(self, path: str) -> None:
        self._do(path, lambda client: client.delete_file(path))

    def move(self, src: str, dest: str) -> None:
        self._do(src, lambda client: client.move(src, dest))

    def copy_file(self, src: str, dest: str) -> None:
        self._do(src, lambda client: client.copy_file(src, dest))

    def open_input_stream(self, path: str) -> Any:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> Any:
        file = self._do(path, lambda client: client.open_input_file(path))
        return pa.PythonFile(CheckedReader(file, f"s3://{path}"), mode="r")

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        return self._do(path, lambda client: client.open_output_stream(path, metadata=metadata))

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        raise StoreError(f"s3://{path}: an object cannot be appended to")


class CheckedReader:
    """An object's bytes, never fewer than were asked for and are there. For one thread at a time."""

    def __init__(self, file: Any, where: str) -> None:
        self._file, self._where, self._position = file, where, 0
        self._size: int = file.size()

    def read(self, count: int | None = None) -> bytearray:
        """The next `count` bytes, or all that are left. Raises StoreError when they cannot be had."""
        left = max(0, self._size - self._position)
        count = left if count is None or count < 0 else min(count, left)
        data = persistent(self._where, lambda: self._filled(count))
        self._position += count
        return data

    def _filled(self, count: int) -> bytearray:
        """`count` bytes from the position on. pyarrow says of a short answer that it was whole, and fills up what is
        missing with nothing: the last byte keeps what it was before. A second look tells it from a byte that is so.
        """
        data = bytearray(count)
        for unlikely in (0xA5, 0x5A) if count else ():
            data[-1] = unlikely
            self._file.seek(self._position)
            if self._file.readinto(data) == count and data[-1] != unlikely:
                return data
        if count:
            raise NotWhole(
                f"the answer is not whole: {count:,} bytes from {self._position:,} on were asked for"
            )
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        self._file.close()

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)


def persistent(where: str, call: Callable[[], Result]) -> Result:
    """What `call` returns, after up to `ATTEMPTS` tries where the client itself does not try again.

    Raises FileNotFoundError for what is not there, StoreError for all else.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except (FileNotFoundError, StoreError):
            raise
        except OSError as error:
            again = isinstance(error, NotWhole) or _NOT_SEEN.search(str(error))
            if not again or attempt == ATTEMPTS:
                raise StoreError(_line(where, error, attempt if again else None)) from error
            logger.info("%s: %s; attempt %d of %d", where, error, attempt, ATTEMPTS)
            time.sleep(BACKOFF_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.0))
    raise AssertionError("ATTEMPTS is at least 1")


def _line(where: str, error: OSError, attempts: int | None) -> str:
    cause = redact(str(error).splitlines()[0]) if str(error) else type(error).__name__
    advice = next((text for pattern, text in _ADVICE if re.search(pattern, cause, re.IGNORECASE)), "")
    if advice is _ADVICE[-1][1]:
        cause += f" (tried {attempts or REQUEST_RETRIES + 1} times)"
    return f"{redact(where)}: {cause}{'; ' if advice else ''}{advice}"
