"""`ssl-ray export`: a trained backbone for torchvision, timm, ONNX and others."""

from pathlib import Path
from typing import Annotated

import typer

from ssl_ray.cli.options import JsonAtEnd, Storage, make_console


def export_backbone(
    source: Annotated[
        str, typer.Argument(help="A run (folder or name), a checkpoint, or a file that `import` wrote.")
    ],
    format_: Annotated[
        str, typer.Option("--format", help="torchvision, timm, safetensors, onnx or torchscript.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="File to write.", show_default="NAME-FORMAT in this folder")
    ] = None,
    storage: Storage = "runs",
    as_json: JsonAtEnd = False,
) -> None:
    """Export a trained backbone, and prove it by loading it back."""
    from ssl_ray.errors import UserError
    from ssl_ray.interop.export import export, format_of
    from ssl_ray.training.trained import load_trained

    suffix = format_of(format_).suffix
    name = source.rstrip("/").rpartition("/")[2].removesuffix(".safetensors").removesuffix(".pt")
    path = out or Path(f"{name}-{format_}{suffix}")
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"out: {str(path)!r} must be a file in a folder that exists")
    console = make_console(as_json)
    trained = load_trained(source, storage)
    done = export(trained, format_, path)
    if as_json:
        console.json_line(
            {
                "file": str(path),
                "format": format_,
                "source": trained.source,
                "architecture": trained.architecture.to_json(),
                "max_abs_diff": done.difference,
                "max_abs_feature": done.scale,
                "image_size": trained.image_size,
                "mean": trained.mean,
                "std": trained.std,
                "usage": done.usage,
            }
        )
        return
    side = trained.image_size
    mean, std = ([round(x, 4) for x in values] for values in (trained.mean, trained.std))
    console.print(f"backbone: {trained.architecture}")
    console.print(f"weights: {trained.source}")
    console.print(f"images: {side} x {side} px, normalised with mean {mean}, std {std}")
    console.print(
        f"loaded back: features of random images differ by at most {done.difference:.2g} "
        f"(largest feature {done.scale:.2g})"
    )
    console.print(f"wrote {path}")
    console.print(f"use it: {done.usage}")
