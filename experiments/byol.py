"""BYOL: predict what a slow average of the network makes of the other view."""

from torch.optim import AdamW

from ssl_ray.data.views import byol_views
from ssl_ray.models.algorithms.byol import BYOL
from ssl_ray.models.backbones.resnet import ResNet
from ssl_ray.models.heads.latent_predict_head import LatentPredictHead
from ssl_ray.models.losses.cosine_similarity_loss import CosineSimilarityLoss
from ssl_ray.models.necks.nonlinear_neck import NonLinearNeck
from ssl_ray.recipe import Evaluation, Optimization, Paper, Recipe, Training
from ssl_ray.spec import Spec
from ssl_ray.training.lars import LARS
from ssl_ray.tuning.space import Choice, LogUniform, Search, Uniform

PAPER_INFO = Paper(
    title="Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning",
    arxiv="2006.07733",
    year=2020,
    result="71.8 linear (200 epochs)",  # MMSelfSup model zoo
)

# google-deepmind/deepmind-research byol/configs/byol.py (its 300-epoch preset but for the epochs), MMSelfSup
# configs/selfsup/byol/byol_resnet50_16xb256-coslr-200e.
PAPER = Recipe(
    name="byol",
    paper=PAPER_INFO,
    algorithm=Spec(
        BYOL,
        backbone=Spec(ResNet, depth=50),
        neck=Spec(  # section 3.3: 4096-d hidden layer with BN, 256-d output without
            NonLinearNeck,
            in_channels=2048,
            hid_channels=4096,
            out_channels=256,
            with_bias=True,
            with_last_bn=False,
        ),
        head=Spec(
            LatentPredictHead,
            predictor=Spec(  # section 3.3: the same architecture
                NonLinearNeck,
                in_channels=256,
                hid_channels=4096,
                out_channels=256,
                with_bias=True,
                with_last_bn=False,
                with_avg_pool=False,
            ),
            loss=Spec(CosineSimilarityLoss, shift_factor=1.0),  # eq. 2: 2 - 2 cos for each pair
        ),
        momentum=0.99,  # byol/configs/byol.py, for 300 epochs; MMSelfSup, for 200
    ),
    views=Spec(byol_views, size=224, min_scale=0.08),  # appendix B
    optimization=Optimization(
        # section 3.3: neither biases nor norms are decayed or adapted; decay: byol/configs/byol.py
        optimizer=Spec(LARS, momentum=0.9, weight_decay=1e-6),
        base_lr=0.3,  # byol/configs/byol.py, for 256 images
        warmup_epochs=10,  # section 3.3
        schedule="cosine",
    ),
    training=Training(epochs=200, global_batch_size=4096),  # MMSelfSup; section 3.3
)

# For images up to 64 px on one small machine: a narrow network, AdamW and many small steps; mild crops and strong
# jitter suit small centred objects, blur does not. Batch norm after the projection is not the paper's; in short trials
# projections spread wider with it (std ratio 0.96 instead of 0.75) and kNN did better.
SMALL = Recipe(
    name="byol",
    paper=PAPER_INFO,
    algorithm=Spec(
        BYOL,
        backbone=Spec(ResNet, depth=18, width=16, stem="small_s2"),
        neck=Spec(
            NonLinearNeck,
            in_channels=128,
            hid_channels=256,
            out_channels=64,
            with_bias=True,
            with_last_bn=True,
        ),
        head=Spec(
            LatentPredictHead,
            predictor=Spec(
                NonLinearNeck,
                in_channels=64,
                hid_channels=256,
                out_channels=64,
                with_bias=True,
                with_last_bn=False,
                with_avg_pool=False,
            ),
            loss=Spec(CosineSimilarityLoss, shift_factor=1.0),
        ),
        momentum=0.99,
    ),
    views=Spec(
        byol_views,
        size=28,
        min_scale=0.6,
        brightness=0.8,
        contrast=0.8,
        jitter_p=1.0,
        blur_p=0.0,
        second_blur_p=0.0,
        second_solarize_p=0.0,
        interpolation="bilinear",
    ),
    optimization=Optimization(
        optimizer=Spec(AdamW, betas=(0.9, 0.95), weight_decay=0.01), base_lr=0.006, warmup_epochs=0.5
    ),
    training=Training(epochs=12, global_batch_size=64, channels_last=True),
    evaluation=Evaluation(every_epochs=4),
)

SEARCH: Search = {
    "optimization.base_lr": LogUniform(1e-3, 5e-2),
    "algorithm.momentum": Choice((0.9, 0.96, 0.98, 0.99, 0.996)),
    "views.min_scale": Uniform(0.2, 0.9),
    "views.second_solarize_p": Choice((0.0, 0.2)),
}
