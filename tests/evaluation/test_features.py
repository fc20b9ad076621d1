from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_ray.data.source import DatasetInfo
from ssl_ray.errors import UserError
from ssl_ray.evaluation import features
from ssl_ray.evaluation.features import (
    Extraction,
    Features,
    Pool,
    extract,
    fit_pool,
    read_cache,
    run_job,
    tasks,
    weights_digest,
    write_cache,
)
from ssl_ray.models.encoder import Encoder
from ssl_ray.models.preprocessing import DataPreprocessor

SIZE = 10


class Pixels(nn.Module):
    """Features that are known exactly: the mean of each column of pixels, times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(1, 2, SIZE))

    def embed(self, images: Tensor) -> Tensor:
        return images.mean(dim=(1, 2)) * self.weight


class Memory:
    """PNG files in memory; those whose index is in `broken` are not images."""

    def __init__(self, n: int, broken: tuple[int, ...] = ()) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 256, (n, SIZE, SIZE, 3), dtype=np.uint8)
        self.blobs = [cv2.imencode(".png", image[:, :, ::-1])[1].tobytes() for image in self.pixels]
        for index in broken:
            self.blobs[index] = b"no image"
        self.info = DatasetInfo("memory", n, (SIZE, SIZE), None, f"{n} {broken}")

    def read(self, indices: np.ndarray) -> list[bytes]:
        return [self.blobs[i] for i in indices]

    def labels(self) -> None:
        return None

    def path(self, index: int) -> str:
        return f"memory/{index}.png"


def extraction(n: int = 50, broken: tuple[int, ...] = (), batch_size: int = 16) -> Extraction:
    encoder = Encoder(Pixels(), DataPreprocessor((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))).eval()
    return Extraction(encoder, weights_digest(encoder), Memory(n, broken), SIZE, batch_size)


def expected(job: Extraction) -> Tensor:
    pixels = torch.from_numpy(job.source.pixels) / 255  # type: ignore[attr-defined]
    return pixels.mean(dim=(1, 3)) * torch.linspace(1, 2, SIZE)


@pytest.mark.parametrize("batch_size", [1, 16, 100])
def test_features_of_a_range(batch_size: int) -> None:
    job = extraction(batch_size=batch_size)
    found, index, broken = job.embed(7, 40, torch.device("cpu"), 2)
    assert index.tolist() == list(range(7, 40))
    assert broken == []
    torch.testing.assert_close(found, expected(job)[7:40])


def test_broken_images_are_named_and_left_out() -> None:
    job = extraction(40, broken=(3, 16, 17, 39), batch_size=2)  # a whole batch is broken
    found, index, broken = job.embed(0, 40, torch.device("cpu"), 1)
    assert index.tolist() == [i for i in range(40) if i not in (3, 16, 17, 39)]
    torch.testing.assert_close(found, expected(job)[index])
    assert [(i, path) for i, path, _ in broken] == [(i, f"memory/{i}.png") for i in (3, 16, 17, 39)]
    assert all(reason for _, _, reason in broken)


def test_the_key_is_that_of_the_content() -> None:
    job = extraction()
    assert extraction(batch_size=3).key == job.key
    with torch.no_grad():
        other = extraction()
        other.encoder.backbone.weight[0] += 1e-6  # type: ignore[union-attr]
    others = [
        replace(job, weights=weights_digest(other.encoder)),
        replace(job, size=SIZE + 2),
        replace(job, size=SIZE - 2),  # cropped, too
        replace(job, source=Memory(49)),
    ]
    assert len({job.key, *(o.key for o in others)}) == 5
    scaled = Encoder(Pixels(), DataPreprocessor())  # mean and std are in no state dict
    assert weights_digest(scaled) != job.weights


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Path, Features]:
    found = Features(torch.randn(20, 5), torch.arange(20), [(3, "a.png", "cut off")])
    write_cache(tmp_path / "folder" / "x.safetensors", found)
    return tmp_path / "folder" / "x.safetensors", found


def test_kept_features_are_the_same(kept: tuple[Path, Features]) -> None:
    path, found = kept
    again = read_cache(path)
    assert again is not None
    assert torch.equal(again.features, found.features)
    assert torch.equal(again.index, found.index)
    assert again.broken == found.broken
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("damage", ["cut", "empty", "changed", "gone", "other"])
def test_damaged_files_are_not_read(kept: tuple[Path, Features], damage: str) -> None:
    path, _ = kept
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "other":
        from safetensors.torch import save_file

        save_file({"features": torch.zeros(2, 2), "index": torch.arange(2)}, path)
    else:
        changed = content[:-1] + bytes([content[-1] ^ 1])
        path.write_bytes({"cut": content[:-7], "empty": b"", "changed": changed}[damage])
    assert read_cache(path) is None


def test_a_write_that_fails_leaves_nothing(kept: tuple[Path, Features], monkeypatch) -> None:
    path, found = kept
    before = path.read_bytes()

    def full(_tensors: Any, file: Path, _metadata: Any) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space"):
        write_cache(path, found)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_tasks_cover_everything() -> None:
    assert tasks(10, 4) == [{"start": 0, "stop": 4}, {"start": 4, "stop": 8}, {"start": 8, "stop": 10}]


class Wrong:
    """A job that meets a mistake of the user's."""

    def start(self, device: torch.device, threads: int) -> None:
        pass

    def do(self, row: Mapping[str, Any]) -> dict[str, Any]:
        raise UserError(f"row {row['start']}: no such bucket")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray warns of its own settings
def test_a_pool_of_actors(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "tasks", lambda n: tasks(n, 9))
    job = extraction(50, broken=(10, 31))
    seen: list[tuple[int, int]] = []
    small = extraction(12)
    found, other = extract([job, small], actors=2, on_progress=lambda done, total: seen.append((done, total)))
    assert other.index.tolist() == list(range(12))
    torch.testing.assert_close(other.features, expected(small))
    assert found.index.tolist() == [i for i in range(50) if i not in (10, 31)]
    torch.testing.assert_close(found.features, expected(job)[found.index])
    assert [(i, path) for i, path, _ in found.broken] == [(10, "memory/10.png"), (31, "memory/31.png")]
    assert seen == [(done, 62) for done in (9, 18, 27, 36, 45, 50, 59, 62)]

    with pytest.raises(UserError, match=r"none of 3 images can be decoded; the first is memory/0\.png"):
        extract([job, extraction(3, broken=(0, 1, 2))], actors=1)
    with pytest.raises(UserError, match="row 0: no such bucket"):
        list(run_job(Wrong(), tasks(3), Pool(1, 1.0, 0.0)))
    with pytest.raises(UserError, match="use --actors 4"):
        extract([job], actors=5)
    with pytest.raises(UserError, match="the cluster has 0"):
        extract([job], gpus_per_actor=1)


def test_what_actors_take(ray_cluster: None) -> None:
    assert fit_pool(None, None, 100) == Pool(4, 1.0, 0.0)
    assert fit_pool(None, None, 2) == Pool(2, 2.0, 0.0)  # no more actors than tasks
    assert fit_pool(1, None, 100) == Pool(1, 4.0, 0.0)
    assert fit_pool(3, 0, 100) == Pool(3, 1.0, 0.0)
