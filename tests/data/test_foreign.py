"""Formats of other tools: what they are is said, and what converts them. Files in the layouts that are documented."""

import io
import json
import shlex
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest

from ssl_ray.data.source import open_dataset
from ssl_ray.errors import UserError
from tests.data.test_source import encoded, numbers, write_folder, write_parquet


def said(uri: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        open_dataset(str(uri))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def command(line: str) -> tuple[str, str]:
    """The Python code that a line advises, and what to give as --data after it."""
    _, _, rest = line.partition("make Parquet of it: ")
    shown, _, data = rest.partition(", then --data ")
    python, option, code = shlex.split(shown)
    assert (python, option) == ("python", "-c")
    compile(code, "advice", "exec")
    return code, shlex.split(data)[0]


def save_to_disk(folder: Path) -> None:
    folder.mkdir(parents=True)
    table = pa.table({"image": [{"bytes": encoded(0), "path": "0.png"}], "label": [0]})
    with pa.ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema) as writer:
        writer.write_table(table)
    (folder / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})
    )
    (folder / "dataset_info.json").write_text("{}")


def write_tar(path: Path, suffixes: tuple[str, ...], keys: tuple[str, ...] = ("000", "001")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key in keys:
            for suffix in suffixes:
                data = encoded(0, suffix=".jpg") if suffix == "jpg" else b"0"
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


def test_what_save_to_disk_wrote(tmp_path: Path) -> None:
    save_to_disk(tmp_path / "my pets")
    line = said(tmp_path / "my pets")
    assert "my pets' is what save_to_disk of Hugging Face's `datasets` wrote" in line
    code, data = command(line)
    assert f'load_from_disk("{tmp_path}/my pets")' in code
    assert 'd.to_parquet("my pets.parquet")' in code
    assert data == "my pets.parquet"


def test_a_saved_dataset_of_several_splits(tmp_path: Path) -> None:
    save_to_disk(tmp_path / "pets" / "train")
    save_to_disk(tmp_path / "pets" / "test")
    (tmp_path / "pets" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    code, data = command(said(tmp_path / "pets"))
    assert f'load_from_disk("{tmp_path}/pets")' in code
    assert '[p.to_parquet(f"pets-parquet/{s}.parquet") for s, p in d.items()]' in code
    assert data == "pets-parquet"


@pytest.mark.parametrize("file", ["_delta_log/00000000000000000000.json", "metadata/v1.metadata.json"])
def test_files_of_a_table_are_not_pooled(tmp_path: Path, file: str) -> None:
    """The files of a table hold deleted rows too; its log says which."""
    for name in ("part-0.parquet", "data/part-0.parquet"):
        write_parquet(tmp_path / "pets" / name, {"image": [encoded(0)]})
    (tmp_path / "pets" / file).parent.mkdir()
    (tmp_path / "pets" / file).write_text("{}")
    assert "whose files also hold rows that were deleted or replaced since" in said(tmp_path / "pets")


def test_hidden_names_of_spark_are_no_data(tmp_path: Path) -> None:
    write_parquet(tmp_path / "part-0.parquet", {"image": [encoded(7)]})
    write_parquet(tmp_path / "_temporary" / "0" / "part-0.parquet", {"image": [encoded(8)]})
    (tmp_path / "_common_metadata.parquet").write_bytes(b"")
    assert numbers(open_dataset(str(tmp_path)).train) == [7]


@pytest.mark.parametrize("given", ["", "pets-0000.tar", "pets-{0000..0001}.tar"])
def test_shards_of_webdataset(tmp_path: Path, given: str) -> None:
    for i in range(2):
        write_tar(tmp_path / "w" / f"pets-{i:04d}.tar", ("jpg", "cls"))
    line = said(tmp_path / "w" / given)
    assert "holds shards of WebDataset" in line
    code, data = command(line)
    files = {"": "*.tar", "pets-0000.tar": "pets-0000.tar"}.get(given, "pets-*.tar")
    assert f'load_dataset("webdataset", data_files="{tmp_path}/w/{files}", split="train")' in code
    assert data == (
        "w.parquet" if not given else "pets-0000.parquet" if given == "pets-0000.tar" else "pets.parquet"
    )


def test_splits_of_webdataset_are_not_pooled(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        write_tar(tmp_path / "w" / "data" / f"{split}-0000.tar", ("jpg", "json"))
    code, data = command(said(tmp_path / "w"))
    files = {"train": f"{tmp_path}/w/**/train[!a-z]*.tar", "validation": f"{tmp_path}/w/**/valid[!a-z]*.tar"}
    assert f"data_files={json.dumps(files)})" in code
    assert data == "w-parquet"


def test_archives_of_images_are_unpacked(tmp_path: Path) -> None:
    folders = write_tar(tmp_path / "pets.tar", ("jpg",), ("cat/000", "dog/000"))
    assert said(folders).endswith(f"unpack it: mkdir -p FOLDER && tar -xf {folders} -C FOLDER")
    for name in ("n01", "n02"):
        write_tar(tmp_path / "classes" / f"{name}.tar", ("jpg",))
    into = "FOLDER/$(basename $t)"
    assert said(tmp_path / "classes").endswith(
        f"for t in {tmp_path}/classes/*.tar; do mkdir -p {into} && tar -xf $t -C {into}; done"
    )


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("a.zip", "holds zip archives; unpack them"),
        ("a.tfrecord", "holds TFRecord files; write their images to a folder"),
        ("shard-00000.arrow", "a `ssl-ray data prepare` that was stopped; run it again"),
        ("b.arrow", "holds Arrow files; write them to Parquet"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, file: str, what: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / file).write_bytes(b"x")
    assert what in said(tmp_path / "d")


def test_images_beside_an_archive_are_read(tmp_path: Path) -> None:
    write_folder(tmp_path / "d", {"cat": 2, "dog": 2})
    write_tar(tmp_path / "d" / "all.tar", ("jpg", "cls"))
    data = open_dataset(str(tmp_path / "d"), holdout=0)
    assert data.train.info.num_samples == 4
    assert "ignored 1 files that are not images by suffix (all.tar)" in data.note
