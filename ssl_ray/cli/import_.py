"""`ssl-ray import`: a checkpoint of another code base as a file that `pretrained=` takes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssl_ray.cli.options import JsonAtEnd, make_console

if TYPE_CHECKING:
    from ssl_ray.spec import Spec


def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="MMSelfSup, MoCo, MAE, ..., torchvision or timm weights.")],
    algorithm: Annotated[
        str | None,
        typer.Option(help="Whose checkpoint it is (see `ssl-ray list`).", show_default="told from its keys"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File or folder to write.", show_default="FILE.safetensors in this folder"),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="'ResNet(depth=50)', or the recipe whose backbone it is.",
            show_default="told from the shapes",
        ),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Accept less than the whole backbone; the rest stays untrained.")
    ] = False,
    drop: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave out what matches, as 'layer*.*.se.*', of a backbone that ours lacks; can be repeated.",
            metavar="PATTERN",
            show_default="nothing of a backbone is left out",
        ),
    ] = None,
    as_json: JsonAtEnd = False,
) -> None:
    """Import a checkpoint of another code base."""
    from ssl_ray.errors import UserError, nearest
    from ssl_ray.experiments import names
    from ssl_ray.interop.backbone_file import write_backbone
    from ssl_ray.interop.checkpoints import import_checkpoint
    from ssl_ray.models import VisionTransformer
    from ssl_ray.training.notices import Notices

    if algorithm is not None and algorithm not in names():
        raise UserError(f"algorithm: {algorithm!r} is not known; {nearest(algorithm, names())}")
    target = _target(file, out)
    console = make_console(as_json)
    notes: list[str] = []
    with Notices(notes.append):
        result = import_checkpoint(file, algorithm, _architecture(backbone), partial, drop or ())
    write_backbone(result.backbone, target)

    trained, report = result.backbone, result.report
    notes = [*result.assumed, *notes]
    if result.backbone.fresh:
        notes.append(f"untrained, because {file.name} does not have them: {', '.join(trained.fresh)}")
    if result.dropped:
        notes.append(
            f"{len(result.dropped)} tensors left out as told: features are not those of the network that was trained"
        )
    if as_json:
        console.json_line(
            {
                "file": str(target),
                "source": trained.source,
                "algorithm": result.algorithm,
                "architecture": trained.architecture.to_json(),
                "guessed": result.guessed,
                "notes": notes,
                "matched": report.matched,
                "missing": report.missing,
                "misfits": result.misfits,
                "unexpected": report.unexpected,
                "dropped": result.dropped,
            }
        )
        return
    console.print(f"source: {trained.source} (told from its keys)")
    console.print(
        f"backbone: {trained.architecture} ({'told from the shapes' if result.guessed else 'as given'})"
    )
    console.table(
        "Tensors",
        ["", "count", "which"],
        [
            ("matched", len(report.matched), _some(report.matched)),
            ("missing", len(report.missing), _some(report.missing)),
            ("other shape", len(result.misfits), _some(list(result.misfits))),
            ("not used", len(report.unexpected), _some(report.unexpected)),
        ],
    )
    for note in notes:
        console.warn(note)
    console.print(f"wrote {target}")
    recipe = result.algorithm or "ALGORITHM"
    console.print(
        f"use it: ssl-ray pretrain {recipe} --set 'algorithm.backbone={trained.architecture}' "
        f"--set 'algorithm.pretrained={target.resolve()}'"
        # What necks take of a Vision Transformer is its class token: no map to average.
        + (
            " --set algorithm.neck.with_avg_pool=False"
            if trained.architecture.target is VisionTransformer
            else ""
        )
    )


def _target(file: Path, out: Path | None) -> Path:
    """The file to write; its folder exists, and it is not the one being read."""
    from ssl_ray.errors import UserError

    name = file.name
    for suffix in (".tar", ".pth", ".pt", ".safetensors"):
        name = name.removesuffix(suffix)
    target = out or Path()
    target = target / f"{name}.safetensors" if target.is_dir() else target
    if target.suffix != ".safetensors":
        raise UserError(f"out: {str(out)!r} is neither a folder nor a .safetensors file")
    if not target.parent.is_dir():
        raise UserError(f"out: {str(target.parent)!r} is no folder; make it first")
    if target.exists() and file.exists() and target.samefile(file):
        raise UserError(f"out: {str(target)!r} is the file that is read; give another --out")
    return target


def _architecture(text: str | None) -> "Spec | None":
    """The backbone a user means: a call written out, or the backbone of a recipe (at paper scale)."""
    from ssl_ray.experiments import load_recipe
    from ssl_ray.paths import parse_value
    from ssl_ray.spec import Spec

    if text is None:
        return None
    value = parse_value(text)
    if isinstance(value, Spec):
        return value
    named = text.endswith(".json") or ":" in text
    backbone: Spec = load_recipe(text, "auto" if named else "paper").recipe.algorithm.kwargs["backbone"]
    return backbone


def _some(names: "tuple[str, ...] | list[str]") -> str:
    """Names by the module they begin with, the first few."""
    groups = list(dict.fromkeys(name.split(".")[0] for name in names))
    return ", ".join(groups[:6]) + (", ..." if len(groups) > 6 else "")
