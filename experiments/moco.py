"""MoCo: momentum contrast against a queue of keys. PAPER is version 2, PAPER_V1 the first."""

from torch.optim import SGD, AdamW

from ssl_ray.data.views import moco_v1_views, moco_v2_views
from ssl_ray.models.algorithms.moco import MoCo
from ssl_ray.models.backbones.resnet import ResNet
from ssl_ray.models.heads.contrastive_head import ContrastiveHead
from ssl_ray.models.losses.cross_entropy_loss import CrossEntropyLoss
from ssl_ray.models.necks.linear_neck import LinearNeck
from ssl_ray.models.necks.nonlinear_neck import NonLinearNeck
from ssl_ray.recipe import Evaluation, Optimization, Paper, Recipe, Training
from ssl_ray.spec import Spec
from ssl_ray.tuning.space import Choice, LogUniform, Search, Uniform

V2 = Paper(
    title="Improved Baselines with Momentum Contrastive Learning",
    arxiv="2003.04297",
    year=2020,
    result="67.5 linear (200 epochs)",  # facebookresearch/moco README: 67.5 +- 0.1; MMSelfSup model zoo: 67.5
)

# MoCo v2: facebookresearch/moco main_moco.py, and MMSelfSup configs/selfsup/mocov2/mocov2_resnet50_8xb32-coslr-200e.
PAPER = Recipe(
    name="moco",
    paper=V2,
    algorithm=Spec(
        MoCo,
        backbone=Spec(ResNet, depth=50),  # plain BN: shuffling the keys takes the place of SyncBN
        neck=Spec(  # v2, section 3: MLP, 2048-d hidden layer, ReLU; no BN
            NonLinearNeck,
            in_channels=2048,
            hid_channels=2048,
            out_channels=128,
            with_bias=True,
            with_last_bias=True,
            with_bn=False,
            with_last_bn=False,
        ),
        head=Spec(ContrastiveHead, temperature=0.2, loss=Spec(CrossEntropyLoss)),  # v2, section 3
        queue_size=65536,  # v1, section 4.1
        momentum=0.999,  # v1, section 4.1
    ),
    # v2, section 3: jitter (0.4, 0.4, 0.4, 0.1) with p 0.8, gray 0.2, blur 0.5; crops from a fifth of the area (v1).
    views=Spec(moco_v2_views, size=224, min_scale=0.2),
    optimization=Optimization(
        optimizer=Spec(SGD, momentum=0.9, weight_decay=1e-4),  # v1, section 4
        base_lr=0.03,  # v1, section 4, for 256 images
        schedule="cosine",  # v2, section 3
    ),
    training=Training(epochs=200, global_batch_size=256, sync_bn=False),  # v1, section 4; v2, table 1
)

# MoCo v1: facebookresearch/moco, MMSelfSup configs/selfsup/mocov1/mocov1_resnet50_8xb32-steplr-200e.
PAPER_V1 = Recipe(
    name="moco",
    paper=Paper(
        title="Momentum Contrast for Unsupervised Visual Representation Learning",
        arxiv="1911.05722",
        year=2020,
        result="60.6 linear (200 epochs)",  # table 1
    ),
    algorithm=Spec(
        MoCo,
        backbone=Spec(ResNet, depth=50),
        neck=Spec(LinearNeck, in_channels=2048, out_channels=128),  # section 3.3
        head=Spec(ContrastiveHead, temperature=0.07, loss=Spec(CrossEntropyLoss)),  # section 3.3
        queue_size=65536,
        momentum=0.999,
    ),
    views=Spec(moco_v1_views, size=224, min_scale=0.2),
    optimization=Optimization(
        optimizer=Spec(SGD, momentum=0.9, weight_decay=1e-4),
        base_lr=0.03,
        schedule="step",
        milestones=(120, 160),  # section 4
        gamma=0.1,
    ),
    training=Training(epochs=200, global_batch_size=256, sync_bn=False),
)

# For images up to 64 px on one small machine: a narrow network, AdamW, and keys encoded in 8 groups, which does for one
# worker's batch norm what shuffling does for many. Mild crops and strong jitter suit small centred objects.
SMALL = Recipe(
    name="moco",
    paper=V2,
    algorithm=Spec(
        MoCo,
        backbone=Spec(ResNet, depth=18, width=16, stem="small_s2"),
        neck=Spec(
            NonLinearNeck,
            in_channels=128,
            hid_channels=128,
            out_channels=64,
            with_bias=True,
            with_last_bias=True,
        ),
        head=Spec(ContrastiveHead, temperature=0.2, loss=Spec(CrossEntropyLoss)),
        queue_size=1024,
        momentum=0.99,
        split_bn=8,
        decay_norms=False,
    ),
    views=Spec(moco_v2_views, size=28, min_scale=0.6, brightness=0.8, contrast=0.8, jitter_p=1.0, blur_p=0.0),
    optimization=Optimization(
        optimizer=Spec(AdamW, betas=(0.9, 0.95), weight_decay=0.01), base_lr=0.006, warmup_epochs=0.5
    ),
    training=Training(epochs=16, global_batch_size=128, channels_last=True, sync_bn=False),
    evaluation=Evaluation(every_epochs=4),
)

SEARCH: Search = {
    "optimization.base_lr": LogUniform(1e-3, 5e-2),
    "algorithm.head.temperature": LogUniform(0.05, 0.5),
    "algorithm.momentum": Choice((0.9, 0.99, 0.996, 0.999)),
    "views.min_scale": Uniform(0.2, 0.9),
}
