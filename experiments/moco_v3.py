"""MoCo v3: keys of the whole batch instead of a queue. PAPER is the ResNet-50, PAPER_VIT the ViT-S/16.

PAPER_VIT_BASE is the ViT-B/16.
"""

from torch.optim import AdamW

from ssl_ray.data.views import moco_v3_views
from ssl_ray.models.algorithms.moco_v3 import MoCoV3
from ssl_ray.models.backbones.moco_v3_vit import MoCoV3ViT
from ssl_ray.models.backbones.resnet import ResNet
from ssl_ray.models.heads.moco_v3_head import MoCoV3Head
from ssl_ray.models.necks.nonlinear_neck import NonLinearNeck
from ssl_ray.recipe import Evaluation, Optimization, Paper, Recipe, Training, overrides
from ssl_ray.spec import Spec
from ssl_ray.training.lars import LARS
from ssl_ray.tuning.space import Choice, LogUniform, Search, Uniform

TITLE = "An Empirical Study of Training Self-Supervised Vision Transformers"
ARXIV = "2104.02057"

# facebookresearch/moco-v3 CONFIG.md (R50, 100 epochs), MMSelfSup configs/selfsup/mocov3/mocov3_resnet50_8xb512-amp-
# coslr-100e.
PAPER = Recipe(
    name="moco_v3",
    paper=Paper(
        title=TITLE,
        arxiv=ARXIV,
        year=2021,
        result="69.6 linear (ResNet-50, 100 epochs)",  # MMSelfSup model zoo; moco-v3 README: 68.9
    ),
    algorithm=Spec(
        MoCoV3,
        backbone=Spec(ResNet, depth=50, zero_init_residual=True),  # main_moco.py; MMSelfSup has no zero
        neck=Spec(  # moco/builder.py, MoCo_ResNet: 2 layers, the last BN not affine
            NonLinearNeck,
            in_channels=2048,
            hid_channels=4096,
            out_channels=256,
            with_last_bn_affine=False,
        ),
        head=Spec(
            MoCoV3Head,
            predictor=Spec(  # moco/builder.py, MoCo_ResNet: 2 layers, no BN after the last
                NonLinearNeck,
                in_channels=256,
                hid_channels=4096,
                out_channels=256,
                with_last_bn=False,
                with_avg_pool=False,
            ),
            temperature=1.0,  # main_moco.py
        ),
        momentum=0.99,  # main_moco.py
    ),
    views=Spec(moco_v3_views, size=224, min_scale=0.2),  # CONFIG.md: --crop-min=.2
    optimization=Optimization(
        optimizer=Spec(LARS, momentum=0.9, weight_decay=1e-6),  # main_moco.py
        base_lr=0.6,  # CONFIG.md, for 256 images
        warmup_epochs=10,  # main_moco.py
        schedule="cosine",
    ),
    training=Training(
        epochs=100, global_batch_size=4096, precision="bf16"
    ),  # main_moco.py; half precision: AMP
)

# facebookresearch/moco-v3 CONFIG.md (ViT-Small), MMSelfSup configs/selfsup/mocov3/mocov3_vit-small-p16_16xb256-amp-
# coslr-300e.
PAPER_VIT = Recipe(
    name="moco_v3",
    paper=Paper(
        title=TITLE,
        arxiv=ARXIV,
        year=2021,
        result="73.2 linear (ViT-S/16, 300 epochs)",  # moco-v3 README; MMSelfSup model zoo: 73.6
    ),
    algorithm=Spec(
        MoCoV3,
        backbone=Spec(  # vits.py, vit_small: 12 heads; section 4: the patch projection stays random
            MoCoV3ViT,
            img_size=224,
            patch_size=16,
            embed_dim=384,
            depth=12,
            num_heads=12,
            stop_grad_conv1=True,
        ),
        neck=Spec(  # section 5: 3 layers, BN after all; moco/builder.py, MoCo_ViT: the last not affine
            NonLinearNeck,
            in_channels=384,
            hid_channels=4096,
            out_channels=256,
            num_layers=3,
            with_last_bn_affine=False,
            with_avg_pool=False,
        ),
        head=Spec(
            MoCoV3Head,
            predictor=Spec(  # section 5: 2 layers
                NonLinearNeck,
                in_channels=256,
                hid_channels=4096,
                out_channels=256,
                with_last_bn_affine=False,
                with_avg_pool=False,
            ),
            temperature=0.2,  # CONFIG.md
        ),
        momentum=0.99,  # CONFIG.md
        decay_norms=True,  # main_moco.py: AdamW takes all parameters alike
    ),
    views=Spec(moco_v3_views, size=224, min_scale=0.08),  # main_moco.py
    optimization=Optimization(
        optimizer=Spec(AdamW, weight_decay=0.1),  # section 5
        base_lr=1.5e-4,  # CONFIG.md, for 256 images
        warmup_epochs=40,  # section 5
        schedule="cosine",
    ),
    training=Training(epochs=300, global_batch_size=4096, precision="bf16"),  # section 5
)

# facebookresearch/moco-v3 CONFIG.md (ViT-Base): as ViT-Small, but for the width; heads of 64 channels.
PAPER_VIT_BASE = overrides(
    PAPER_VIT,
    {
        "paper.result": "76.7 linear (ViT-B/16, 300 epochs)",  # moco-v3 README; MMSelfSup model zoo: 76.9
        "algorithm.backbone.embed_dim": 768,
        "algorithm.neck.in_channels": 768,
    },
)

# For images up to 64 px on one small machine. A ResNet, for its kNN accuracy: 0.73 after 3 epochs of 4000 images, where
# a ViT of 4 blocks and 96 channels had come from 0.59 to 0.64. Mild crops suit small centred objects, blur does not.
SMALL = Recipe(
    name="moco_v3",
    paper=PAPER.paper,
    algorithm=Spec(
        MoCoV3,
        backbone=Spec(ResNet, depth=18, width=16, stem="small_s2"),
        neck=Spec(
            NonLinearNeck,
            in_channels=128,
            hid_channels=256,
            out_channels=64,
            num_layers=3,
            with_last_bn_affine=False,
        ),
        head=Spec(
            MoCoV3Head,
            predictor=Spec(
                NonLinearNeck,
                in_channels=64,
                hid_channels=256,
                out_channels=64,
                with_last_bn_affine=False,
                with_avg_pool=False,
            ),
            temperature=0.2,
        ),
        momentum=0.98,
    ),
    views=Spec(
        moco_v3_views,
        size=28,
        min_scale=0.6,
        brightness=0.8,
        contrast=0.8,
        jitter_p=1.0,
        blur_p=0.0,
        second_blur_p=0.0,
        second_solarize_p=0.0,
    ),
    optimization=Optimization(
        optimizer=Spec(AdamW, betas=(0.9, 0.95), weight_decay=0.01), base_lr=0.006, warmup_epochs=0.5
    ),
    training=Training(epochs=12, global_batch_size=64, channels_last=True),
    evaluation=Evaluation(every_epochs=4),
)

SEARCH: Search = {
    "optimization.base_lr": LogUniform(1e-3, 3e-2),
    "algorithm.head.temperature": LogUniform(0.1, 1.0),
    "algorithm.momentum": Choice((0.9, 0.96, 0.98, 0.99, 0.996)),
    "views.min_scale": Uniform(0.2, 0.9),
}
