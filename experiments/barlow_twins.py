"""Barlow Twins: make the features of two views agree, each with itself and with no other."""

from torch.optim import AdamW

from ssl_ray.data.views import barlow_twins_views
from ssl_ray.models.algorithms.barlow_twins import BarlowTwins
from ssl_ray.models.backbones.resnet import ResNet
from ssl_ray.models.heads.latent_cross_correlation_head import LatentCrossCorrelationHead
from ssl_ray.models.losses.cross_correlation_loss import CrossCorrelationLoss
from ssl_ray.models.necks.nonlinear_neck import NonLinearNeck
from ssl_ray.recipe import Evaluation, Optimization, Paper, Recipe, Training
from ssl_ray.spec import Spec
from ssl_ray.training.lars import LARS
from ssl_ray.tuning.space import LogUniform, Search, Uniform

PAPER_INFO = Paper(
    title="Barlow Twins: Self-Supervised Learning via Redundancy Reduction",
    arxiv="2103.03230",
    year=2021,
    result="71.8 linear (300 epochs)",  # MMSelfSup model zoo; 73.2 in the paper, with 1000 epochs
)

# facebookresearch/barlowtwins main.py, with the epochs of MMSelfSup
# configs/selfsup/barlowtwins/barlowtwins_resnet50_8xb256-coslr-300e_in1k.
PAPER = Recipe(
    name="barlow_twins",
    paper=PAPER_INFO,
    algorithm=Spec(
        BarlowTwins,
        backbone=Spec(ResNet, depth=50, zero_init_residual=True),  # main.py
        neck=Spec(  # section 2.2: three layers of 8192, batch norm and ReLU after the first two
            NonLinearNeck,
            in_channels=2048,
            hid_channels=8192,
            out_channels=8192,
            num_layers=3,
            with_last_bn=False,
        ),
        head=Spec(
            LatentCrossCorrelationHead,
            in_channels=8192,
            loss=Spec(CrossCorrelationLoss, lambd=0.0051),  # main.py
        ),
        bias_lr_scale=0.024,  # main.py: 0.0048 for biases and batch norm, 0.2 for weights
    ),
    # Section 2.2: BYOL's views. Main.py: crops from 0.08 of the area.
    views=Spec(barlow_twins_views, size=224, min_scale=0.08),
    optimization=Optimization(
        optimizer=Spec(LARS, momentum=0.9, weight_decay=1e-6),  # main.py
        base_lr=0.2,  # main.py
        warmup_epochs=10,  # section 2.2
        warmup_start=1.6e-4,  # MMSelfSup
        schedule="cosine",
        final_lr=0.0016,  # section 2.2: a thousandth of the peak
    ),
    training=Training(epochs=300, global_batch_size=2048),  # SyncBN: main.py
)

# For images up to 64 px on one small machine: a narrow network and AdamW; blur would leave too little of 28 px, and
# solarized clothes are no longer the same clothes. lambd is the paper's, though 256 features are fewer than 8192: with
# 0.02 and 0.05, and milder crops, trials ended two points of kNN lower.
SMALL = Recipe(
    name="barlow_twins",
    paper=PAPER_INFO,
    algorithm=Spec(
        BarlowTwins,
        backbone=Spec(ResNet, depth=18, width=16, stem="small_s2"),
        neck=Spec(
            NonLinearNeck,
            in_channels=128,
            hid_channels=256,
            out_channels=256,
            num_layers=3,
            with_last_bn=False,
        ),
        head=Spec(LatentCrossCorrelationHead, in_channels=256, loss=Spec(CrossCorrelationLoss, lambd=0.005)),
        bias_lr_scale=1.0,
    ),
    views=Spec(
        barlow_twins_views,
        size=28,
        min_scale=0.4,
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
    training=Training(epochs=16, global_batch_size=128, channels_last=True),
    evaluation=Evaluation(every_epochs=4),
)

SEARCH: Search = {
    "optimization.base_lr": LogUniform(1e-3, 5e-2),
    "algorithm.head.loss.lambd": LogUniform(0.002, 0.2),
    "views.min_scale": Uniform(0.1, 0.8),
}
