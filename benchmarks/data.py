"""Views per second and core: our host pipeline, lightly, torchvision on PIL, torchvision v2 on tensors, decoding alone.

Every contender starts from the same encoded bytes in memory and runs on one thread, in rounds that take turns; the
figure is the median over rounds of views / process time. The rivals are timed as their users run them. lightly and
torchvision end in normalised float tensors; ours ends in uint8, because it normalises on the accelerator. The row
"ssl-ray, float" therefore adds that work on the same core.

    python benchmarks/data.py [--folder PHOTOS] [--json]
"""

import argparse
import io
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision.transforms import v2

from ssl_ray.data.decode import decode
from ssl_ray.data.pipeline import ViewPipeline, make_batch
from ssl_ray.data.views import mae_views, moco_v2_views, simclr_views
from ssl_ray.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, DataPreprocessor

BATCH = 64
PACKAGES = ("opencv-python-headless", "numpy", "torch", "torchvision", "pillow", "lightly")
Contender = Callable[[list[bytes]], None]


def sample_photos(folder: Path, count: int = 48) -> None:
    """Writes crops of scikit-learn's two photographs, 500 x 375 or 375 x 500 (JPEG, quality 90)."""
    from sklearn.datasets import load_sample_images

    photos = [
        cv2.resize(p, None, fx=2.0, fy=2.0, interpolation=cv2.INTER_CUBIC)
        for p in load_sample_images().images
    ]
    rng = np.random.default_rng(0)
    for i in range(count):
        photo = photos[i % len(photos)]
        height, width = (375, 500) if i % 3 else (500, 375)
        top, left = (
            int(rng.integers(0, a - b)) for a, b in zip(photo.shape[:2], (height, width), strict=True)
        )
        crop = photo[top : top + height, left : left + width, ::-1]
        cv2.imwrite(str(folder / f"{i:03d}.jpg"), crop, [cv2.IMWRITE_JPEG_QUALITY, 90])


def load(folder: Path | None, count: int) -> list[bytes]:
    """Encoded images of a folder (JPEG and PNG, evenly picked), or of the sample photographs."""
    if folder is not None:
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png"})
        if not files:
            raise SystemExit(f"--folder {folder}: no .jpg, .jpeg or .png in it")
        return [f.read_bytes() for f in files[:: max(1, len(files) // count)][:count]]
    with tempfile.TemporaryDirectory() as directory:
        sample_photos(Path(directory), count)
        return load(Path(directory), count)


def small_images(blobs: list[bytes], side: int = 28) -> list[bytes]:
    """The same images as side x side grayscale PNG, as in Fashion-MNIST."""
    made = []
    for blob in blobs:
        gray = cv2.cvtColor(decode(blob), cv2.COLOR_RGB2GRAY)
        made.append(
            cv2.imencode(".png", cv2.resize(gray, (side, side), interpolation=cv2.INTER_AREA))[1].tobytes()
        )
    return made


def ours(pipeline: ViewPipeline, to_float: bool = False) -> Contender:
    """Our pipeline, batch after batch; with to_float, normalised on this core as well."""
    preprocessor = DataPreprocessor()

    def run(blobs: list[bytes]) -> None:
        for start in range(0, len(blobs), BATCH):
            part = blobs[start : start + BATCH]
            columns, failures = make_batch(
                pipeline, part, np.arange(start, start + len(part)), seed=0, epoch=0
            )
            assert not failures
            if to_float:
                preprocessor(
                    [
                        torch.from_numpy(columns[f"view_{i}"]).permute(0, 3, 1, 2)
                        for i in range(len(pipeline.sizes))
                    ]
                )

    return run


def decode_all(blobs: list[bytes]) -> None:
    """What no pipeline on this decoder can beat."""
    for blob in blobs:
        decode(blob)


def on_pil(transform: Callable[[Any], Any], views: int = 1) -> Contender:
    """PIL decodes, `transform` is called once per view (or once, if it makes all views itself)."""

    def run(blobs: list[bytes]) -> None:
        for blob in blobs:
            image = Image.open(io.BytesIO(blob)).convert("RGB")
            for _ in range(views):
                transform(image)

    return run


def on_tensor(transform: Callable[[Any], Any], views: int) -> Contender:
    """Torchvision decodes into a uint8 tensor, v2 transforms follow."""

    def run(blobs: list[bytes]) -> None:
        for blob in blobs:
            image = torchvision.io.decode_image(
                torch.frombuffer(bytearray(blob), dtype=torch.uint8), torchvision.io.ImageReadMode.RGB
            )
            for _ in range(views):
                transform(image)

    return run


def torchvision_chain(recipe: str, size: int, tensor: bool) -> Any:
    """The recipe in torchvision's own words; `tensor` takes uint8 tensors, otherwise PIL images."""
    normalize = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    start = [] if tensor else [v2.ToImage()]
    if recipe == "mae":
        crop = v2.RandomResizedCrop(size, (0.2, 1.0), interpolation=v2.InterpolationMode.BICUBIC)
        return v2.Compose([crop, v2.RandomHorizontalFlip(), *start, *normalize])
    strong = recipe == "simclr"
    s = 0.8 if strong else 0.4
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, (0.08 if strong else 0.2, 1.0)),
            v2.RandomApply([v2.ColorJitter(s, s, s, 0.2 if strong else 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(2 * (size // 20) + 1, (0.1, 2.0))], 0.5),
            v2.RandomHorizontalFlip(),
            *start,
            *normalize,
        ]
    )


def contenders(recipe: str, size: int) -> tuple[int, dict[str, Contender]]:
    """Views per image, and every contender for one recipe."""
    import lightly.transforms as peers  # slow to import

    pipelines: dict[str, Callable[[int], ViewPipeline]] = {
        "moco_v2": moco_v2_views,
        "simclr": simclr_views,
        "mae": mae_views,
    }
    pipeline = pipelines[recipe](size)
    views = len(pipeline.sizes)
    if recipe == "mae":
        lightly = peers.MAETransform(input_size=size)
    elif recipe == "simclr":
        lightly = peers.SimCLRTransform(input_size=size, cj_strength=1.0)
    else:
        lightly = peers.MoCoV2Transform(input_size=size)
    return views, {
        "ssl-ray": ours(pipeline),
        "ssl-ray, float": ours(pipeline, to_float=True),
        "lightly": on_pil(lightly),
        "torchvision PIL": on_pil(torchvision_chain(recipe, size, tensor=False), views),
        "torchvision v2 tensor": on_tensor(torchvision_chain(recipe, size, tensor=True), views),
        "decode alone": decode_all,
    }


def measure(runs: dict[str, Contender], blobs: list[bytes], views: int, rounds: int) -> dict[str, float]:
    """Median views per second of process time; contenders take turns within each round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(blobs[:4])
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.process_time()
            run(blobs)
            seconds[name].append(time.process_time() - start)
    return {name: len(blobs) * views / statistics.median(s) for name, s in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, help="encoded photographs; default: scikit-learn's samples, cropped"
    )
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="one of: moco_v2, simclr, mae, moco_v2_28px")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)

    blobs = load(args.folder, args.images)
    small = small_images(blobs)
    result: dict[str, Any] = {
        "machine": f"{platform.processor() or platform.machine()}, {platform.system()} {platform.release()}",
        "versions": {
            p: version(p)
            for p in ("opencv-python-headless", "numpy", "torch", "torchvision", "pillow", "lightly")
        },
        "images": len(blobs),
        "folder": str(args.folder) if args.folder else "scikit-learn sample photographs",
    }
    print(f"{result['machine']}; {', '.join(f'{k} {v}' for k, v in result['versions'].items())}")
    print(
        f"{len(blobs)} images, mean {sum(map(len, blobs)) / len(blobs) / 1024:.0f} KB, from {result['folder']}"
    )
    for name, recipe, size, images in (
        ("moco_v2", "moco_v2", 224, blobs),
        ("simclr", "simclr", 224, blobs),
        ("mae", "mae", 224, blobs),
        ("moco_v2_28px", "moco_v2", 28, small),
    ):
        if args.only not in (None, name):
            continue
        views, runs = contenders(recipe, size)
        rates = measure(runs, images * (8 if size < 64 else 1), views, args.rounds)
        print(f"\n{name}: {views} view(s) of {size} px an image{'':12}views/s per core   x lightly")
        for contender, rate in rates.items():
            print(f"  {contender:24}{rate:28,.0f}{rate / rates['lightly']:12.2f}")
        result[name] = {
            "views_per_second": {k: round(v, 1) for k, v in rates.items()},
            "ratio_vs_lightly": round(rates["ssl-ray"] / rates["lightly"], 2),
            "ratio_vs_lightly_float": round(rates["ssl-ray, float"] / rates["lightly"], 2),
        }
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
