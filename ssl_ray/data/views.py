"""Presets: the views that each method trains on, with the published settings as defaults.

Arguments have one meaning in all of them. size: side of a view, pixels. num_views: alike but drawn anew. min_scale:
smallest crop, as a share of the image's area. brightness, contrast, saturation, hue: strengths as in torchvision's
ColorJitter. *_p: probabilities. min_sigma, max_sigma: of the blur, in pixels of the view. second_*: the same for the
second view where the two differ.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, ParamSpec

from pydantic import Field

from ssl_ray.data.augment.geometry import CenterCrop, Interpolation, RandomResizedCrop, RandomSquare
from ssl_ray.data.augment.rand_augment import Magnitude, Operations, RandAugment, RandomErasing
from ssl_ray.data.augment.transforms import (
    ColorDropping,
    ColorJitter,
    Degrees,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Hue,
    Rotation,
    Sigma,
    Solarize,
)
from ssl_ray.data.masking import BlockMask, RandomCellMask, UniformNoise
from ssl_ray.data.mixing import Alpha, Mixing
from ssl_ray.data.pipeline import ViewPipeline
from ssl_ray.data.view_makers import PatchGrid, SameCrop, View
from ssl_ray.errors import UserError
from ssl_ray.ranges import Count, Fraction, Natural, NotNegative, Part, Pixels, Share

P = ParamSpec("P")

Views = Annotated[int, Field(gt=0, le=64)]


def _variant(
    base: Callable[P, ViewPipeline], **defaults: Any
) -> Callable[[Callable[[], None]], Callable[P, ViewPipeline]]:
    """Makes a preset of a name and a docstring: `base` with some other defaults, which its signature shows."""
    signature = inspect.signature(base)
    parameters = signature.parameters
    assert defaults.keys() <= parameters.keys()
    shown = signature.replace(
        parameters=[p.replace(default=defaults.get(n, p.default)) for n, p in parameters.items()]
    )

    def name(described: Callable[[], None]) -> Callable[P, ViewPipeline]:
        @functools.wraps(described)
        def preset(*args: P.args, **kwargs: P.kwargs) -> ViewPipeline:
            given = shown.bind(*args, **kwargs)
            given.apply_defaults()
            return base(*given.args, **given.kwargs)

        preset.__signature__ = shown  # type: ignore[attr-defined]
        preset.__annotations__ = base.__annotations__
        return preset

    return name


def _check_order(low_name: str, low: float, high_name: str, high: float) -> None:
    if low > high:
        raise UserError(
            f"{low_name}: {low:g} is more than {high_name} {high:g}; lower the one or raise the other"
        )


def _check_patch_size(patch_size: int, size: int) -> None:
    if size % patch_size:
        raise UserError(f"patch_size: {patch_size} must divide size {size}")


def moco_v1_views(
    size: Pixels = 224,
    num_views: Views = 2,
    min_scale: Share = 0.2,
    gray_p: Fraction = 0.2,
    brightness: NotNegative = 0.4,
    contrast: NotNegative = 0.4,
    saturation: NotNegative = 0.4,
    hue: Hue = 0.4,
    jitter_p: Fraction = 1.0,
    flip_p: Fraction = 0.5,
    interpolation: Interpolation = "bilinear",
) -> ViewPipeline:
    """MoCo v1, arXiv 1911.05722: crop, grayscale, then jitter, flip."""
    transforms = (
        Grayscale(gray_p),
        ColorJitter(brightness, contrast, saturation, hue, jitter_p),
        HorizontalFlip(flip_p),
    )
    view = View(size, RandomResizedCrop((min_scale, 1.0)), transforms, interpolation)
    return ViewPipeline([view] * num_views)


@_variant(moco_v1_views, num_views=1)
def npid_views() -> None:
    """NPID, arXiv 1805.01978: one view like MoCo v1's."""


def moco_v2_views(
    size: Pixels = 224,
    num_views: Views = 2,
    min_scale: Share = 0.2,
    brightness: NotNegative = 0.4,
    contrast: NotNegative = 0.4,
    saturation: NotNegative = 0.4,
    hue: Hue = 0.1,
    jitter_p: Fraction = 0.8,
    gray_p: Fraction = 0.2,
    blur_p: Fraction = 0.5,
    min_sigma: Sigma = 0.1,
    max_sigma: Sigma = 2.0,
    solarize_p: Fraction = 0.0,
    flip_p: Fraction = 0.5,
    interpolation: Interpolation = "bilinear",
) -> ViewPipeline:
    """MoCo v2, arXiv 2003.04297: MoCo v1's with weaker hue, jitter not always, and blur; DenseCL and SimSiam too."""
    _check_order("min_sigma", min_sigma, "max_sigma", max_sigma)
    transforms = (
        HorizontalFlip(flip_p),
        ColorJitter(brightness, contrast, saturation, hue, jitter_p),
        Grayscale(gray_p),
        GaussianBlur(blur_p, (min_sigma, max_sigma)),
        Solarize(solarize_p),
    )
    view = View(size, RandomResizedCrop((min_scale, 1.0)), transforms, interpolation)
    return ViewPipeline([view] * num_views)


@_variant(
    moco_v2_views,
    min_scale=0.08,
    brightness=0.8,
    contrast=0.8,
    saturation=0.8,
    hue=0.2,
    interpolation="bicubic",
)
def simclr_views() -> None:
    """SimCLR, arXiv 2002.05709, appendix A: smaller crops and twice MoCo v2's jitter; bicubic: official code."""


def swav_views(
    size: Pixels = 224,
    small_size: Pixels = 96,
    num_views: Views = 2,
    num_small: Annotated[int, Field(ge=0, le=64)] = 6,
    min_scale: Share = 0.14,
    small_min_scale: Share = 0.05,
    small_max_scale: Share = 0.14,
    brightness: NotNegative = 0.8,
    contrast: NotNegative = 0.8,
    saturation: NotNegative = 0.8,
    hue: Hue = 0.2,
    jitter_p: Fraction = 0.8,
    gray_p: Fraction = 0.2,
    blur_p: Fraction = 0.5,
    min_sigma: Sigma = 0.1,
    max_sigma: Sigma = 2.0,
    solarize_p: Fraction = 0.0,
    flip_p: Fraction = 0.5,
    interpolation: Interpolation = "bilinear",
) -> ViewPipeline:
    """SwAV, arXiv 2006.09882, section 3.2 (multi-crop): the large views first, then `num_small` of small parts."""
    _check_order("small_min_scale", small_min_scale, "small_max_scale", small_max_scale)
    _check_order("min_sigma", min_sigma, "max_sigma", max_sigma)
    transforms = (
        HorizontalFlip(flip_p),
        ColorJitter(brightness, contrast, saturation, hue, jitter_p),
        Grayscale(gray_p),
        GaussianBlur(blur_p, (min_sigma, max_sigma)),
        Solarize(solarize_p),
    )
    large = View(size, RandomResizedCrop((min_scale, 1.0)), transforms, interpolation)
    small = View(small_size, RandomResizedCrop((small_min_scale, small_max_scale)), transforms, interpolation)
    return ViewPipeline([large] * num_views + [small] * num_small)


def byol_views(
    size: Pixels = 224,
    min_scale: Share = 0.08,
    brightness: NotNegative = 0.4,
    contrast: NotNegative = 0.4,
    saturation: NotNegative = 0.2,
    hue: Hue = 0.1,
    jitter_p: Fraction = 0.8,
    gray_p: Fraction = 0.2,
    blur_p: Fraction = 1.0,
    second_blur_p: Fraction = 0.1,
    min_sigma: Sigma = 0.1,
    max_sigma: Sigma = 2.0,
    solarize_p: Fraction = 0.0,
    second_solarize_p: Fraction = 0.2,
    flip_p: Fraction = 0.5,
    interpolation: Interpolation = "bicubic",
) -> ViewPipeline:
    """BYOL, arXiv 2006.07733, appendix B: the first view always blurred, the second rarely but sometimes solarized."""
    _check_order("min_sigma", min_sigma, "max_sigma", max_sigma)
    jitter = ColorJitter(brightness, contrast, saturation, hue, jitter_p)
    views = []
    for blur, solarize in ((blur_p, solarize_p), (second_blur_p, second_solarize_p)):
        transforms = (
            HorizontalFlip(flip_p),
            jitter,
            Grayscale(gray_p),
            GaussianBlur(blur, (min_sigma, max_sigma)),
            Solarize(solarize),
        )
        views.append(View(size, RandomResizedCrop((min_scale, 1.0)), transforms, interpolation))
    return ViewPipeline(views)


@_variant(byol_views)
def barlow_twins_views() -> None:
    """Barlow Twins, arXiv 2103.03230, section 3: BYOL's views."""


@_variant(byol_views, interpolation="bilinear")
def moco_v3_views() -> None:
    """MoCo v3, arXiv 2104.02057: BYOL's views; its ResNet-50 recipe has min_scale 0.2."""


def deepcluster_views(
    size: Pixels = 224,
    num_views: Views = 1,
    min_scale: Share = 0.08,
    flip_p: Fraction = 0.5,
    degrees: Degrees = 2.0,
    brightness: NotNegative = 0.4,
    contrast: NotNegative = 0.4,
    saturation: NotNegative = 1.0,
    hue: Hue = 0.5,
    jitter_p: Fraction = 1.0,
    gray_p: Fraction = 0.2,
    interpolation: Interpolation = "bilinear",
) -> ViewPipeline:
    """DeepCluster, arXiv 1807.05520, as MMSelfSup trains it: crop, flip, a slight rotation, strong jitter, grayscale.

    The authors' own code crops and flips only: degrees 0, jitter_p 0, gray_p 0.
    """
    transforms = (
        HorizontalFlip(flip_p),
        Rotation(degrees),
        ColorJitter(brightness, contrast, saturation, hue, jitter_p),
        Grayscale(gray_p),
    )
    view = View(size, RandomResizedCrop((min_scale, 1.0)), transforms, interpolation)
    return ViewPipeline([view] * num_views)


@_variant(deepcluster_views)
def odc_views() -> None:
    """ODC, arXiv 2006.10645, as OpenSelfSup, its official code, trains it: DeepCluster's view."""


def rotation_views(
    size: Pixels = 224,
    min_scale: Share = 0.08,
    flip_p: Fraction = 0.5,
    interpolation: Interpolation = "bilinear",
) -> ViewPipeline:
    """RotationPred, arXiv 1803.07728: one view, crop and flip only; the algorithm turns it by 0, 90, 180 and 270."""
    return ViewPipeline(
        [View(size, RandomResizedCrop((min_scale, 1.0)), (HorizontalFlip(flip_p),), interpolation)]
    )


def relative_loc_views(
    size: Pixels = 255,
    patch_side: Pixels = 64,
    gap: Natural = 0,
    crop_fraction: Share = 255 / 292,
    gray_p: Fraction = 0.66,
    drop_p: Fraction = 0.0,
    interpolation: Interpolation = "bilinear",
) -> ViewPipeline:
    """RelativeLoc, arXiv 1505.05192: nine patches of one crop, the centre first, then its eight neighbours.

    The crop, `crop_fraction` of the image's short side and resampled to `size` pixels, is divided into 3 x 3 cells; a
    patch of patch_side pixels lies anywhere in its cell. Neighbours come down the first column, the second, the third,
    as MMSelfSup numbers its labels 0..7. gap: at least so many pixels lie between two patches, so that no edge runs on
    from one to the next. gray_p: of the whole crop becoming gray; drop_p: of a patch keeping one colour only. Both hide
    chromatic aberration, which would tell where in the picture a patch lies (section 3.1).
    """
    canvas = View(size, RandomSquare(crop_fraction), (Grayscale(gray_p),), interpolation)
    return ViewPipeline([PatchGrid(canvas, patch_side, gap, (ColorDropping(drop_p),))], eval_size=size)


def mae_views(
    size: Pixels = 224,
    patch_size: Pixels = 16,
    min_scale: Share = 0.2,
    flip_p: Fraction = 0.5,
    interpolation: Interpolation = "bicubic",
) -> ViewPipeline:
    """MAE, arXiv 2111.06377: one view, crop and flip only, and the column `mask_noise` (L,) with a number per patch."""
    _check_patch_size(patch_size, size)
    view = View(size, RandomResizedCrop((min_scale, 1.0)), (HorizontalFlip(flip_p),), interpolation)
    return ViewPipeline([view], {"mask_noise": UniformNoise((size // patch_size) ** 2)})


def simmim_views(
    size: Pixels = 192,
    patch_size: Pixels = 4,
    mask_patch_size: Pixels = 32,
    mask_ratio: Part = 0.6,
    min_scale: Share = 0.67,
    flip_p: Fraction = 0.5,
    interpolation: Interpolation = "bilinear",
) -> ViewPipeline:
    """SimMIM, arXiv 2111.09886: one view, crop and flip only, and the column `mask` (L, L) uint8, 1 = hidden.

    L is size / patch_size. The mask hides ceil(mask_ratio * count) of the squares of mask_patch_size pixels.
    """
    if size % mask_patch_size or mask_patch_size % patch_size:
        raise UserError(
            f"mask_patch_size: {mask_patch_size} must divide size {size} and be a multiple of patch_size {patch_size}"
        )
    view = View(size, RandomResizedCrop((min_scale, 1.0)), (HorizontalFlip(flip_p),), interpolation)
    mask = RandomCellMask(size // mask_patch_size, mask_patch_size // patch_size, mask_ratio)
    return ViewPipeline([view], {"mask": mask})


def cae_views(
    size: Pixels = 224,
    token_size: Pixels = 112,
    patch_size: Pixels = 16,
    num_masked: Count = 75,
    min_masked: Count = 16,
    min_aspect: Share = 0.3,
    min_scale: Share = 0.08,
    flip_p: Fraction = 0.5,
    interpolation: Interpolation = "bicubic",
    token_interpolation: Interpolation = "lanczos",
) -> ViewPipeline:
    """CAE, arXiv 2202.03026: one crop at two sizes and the column `mask` (L, L) uint8, 1 = hidden.

    view_0 is what the encoder sees, view_1, of token_size pixels, what the tokeniser sees. L is size / patch_size;
    exactly num_masked patches are hidden, in blocks of min_masked patches and more.
    """
    _check_patch_size(patch_size, size)
    cut, flip = RandomResizedCrop((min_scale, 1.0)), (HorizontalFlip(flip_p),)
    crop = SameCrop((View(size, cut, flip, interpolation), View(token_size, cut, flip, token_interpolation)))
    return ViewPipeline([crop], {"mask": BlockMask(size // patch_size, num_masked, min_masked, min_aspect)})


def finetune_views(
    size: Pixels = 224,
    min_scale: Share = 0.08,
    flip_p: Fraction = 0.5,
    brightness: NotNegative = 0.4,
    contrast: NotNegative = 0.4,
    saturation: NotNegative = 0.4,
    hue: Hue = 0.0,
    jitter_p: Fraction = 1.0,
    num_ops: Operations = 0,
    magnitude: Magnitude = 9.0,
    erase_p: Fraction = 0.0,
    mixup: Alpha = 0.0,
    cutmix: Alpha = 0.0,
    mix_p: Fraction = 1.0,
    interpolation: Interpolation = "bicubic",
) -> ViewPipeline:
    """Fine-tuning with labels: crop, flip, jitter or more; and the column `mixing` (5,) where images are mixed.

    num_ops, magnitude: of RandAugment, 0 = off; erase_p: of a rectangle of noise. mixup, cutmix: alpha of the Beta
    distribution, 0 = off; mix_p: of an image being mixed. MAE, arXiv 2111.06377, table 9, has no jitter, 2 operations
    of magnitude 9, erase_p 0.25, mixup 0.8 and cutmix 1.0.
    """
    transforms = (
        HorizontalFlip(flip_p),
        ColorJitter(brightness, contrast, saturation, hue, jitter_p),
        RandAugment(num_ops, magnitude),
        RandomErasing(erase_p),
    )
    view = View(size, RandomResizedCrop((min_scale, 1.0)), transforms, interpolation)
    return ViewPipeline([view], {"mixing": Mixing(mixup, cutmix, mix_p)} if mixup or cutmix else {})


def plain_views(
    size: Pixels = 224, crop_fraction: Share = 0.875, interpolation: Interpolation = "bilinear"
) -> ViewPipeline:
    """One view with nothing random: the central square, 0.875 of the short side; for features and evaluation."""
    return ViewPipeline([View(size, CenterCrop(crop_fraction), (), interpolation)])
