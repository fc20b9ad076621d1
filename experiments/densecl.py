"""DenseCL: MoCo v2 for images, and once more for every cell of their maps."""

from torch.optim import SGD, AdamW

from ssl_ray.data.views import moco_v2_views
from ssl_ray.models.algorithms.densecl import DenseCL
from ssl_ray.models.backbones.resnet import ResNet
from ssl_ray.models.heads.contrastive_head import ContrastiveHead
from ssl_ray.models.losses.cross_entropy_loss import CrossEntropyLoss
from ssl_ray.models.necks.densecl_neck import DenseCLNeck
from ssl_ray.recipe import Evaluation, Optimization, Paper, Recipe, Training
from ssl_ray.spec import Spec
from ssl_ray.tuning.space import Choice, LogUniform, Search, Uniform

PAPER_INFO = Paper(
    title="Dense Contrastive Learning for Self-Supervised Visual Pre-Training",
    arxiv="2011.09157",
    year=2021,
    result="63.5 linear (200 epochs)",  # MMSelfSup model zoo; it is made for detection: VOC AP 58.7 (MoCo v2: 57.0)
)

# WXinlong/DenseCL configs/selfsup/densecl/densecl_imagenet_200ep.py, and MMSelfSup
# configs/selfsup/densecl/densecl_resnet50_8xb32-coslr-200e_in1k.
PAPER = Recipe(
    name="densecl",
    paper=PAPER_INFO,
    algorithm=Spec(
        DenseCL,
        backbone=Spec(ResNet, depth=50),  # plain BN: shuffling the keys takes the place of SyncBN
        neck=Spec(  # section 3.4: two heads of two layers, 2048 wide, 128-d
            DenseCLNeck, in_channels=2048, hid_channels=2048, out_channels=128, num_grid=None
        ),
        head=Spec(ContrastiveHead, temperature=0.2, loss=Spec(CrossEntropyLoss)),
        queue_size=65536,
        momentum=0.999,
        loss_lambda=0.5,  # section 3.4
        start_iters=1000,  # MMSelfSup's DenseCLHook
    ),
    views=Spec(moco_v2_views, size=224, min_scale=0.2),  # section 3.4: MoCo v2's
    optimization=Optimization(
        optimizer=Spec(SGD, momentum=0.9, weight_decay=1e-4),
        base_lr=0.03,  # for 256 images
        schedule="cosine",
    ),
    training=Training(epochs=200, global_batch_size=256, sync_bn=False),
)

# For images up to 64 px on one small machine, as MoCo's: a narrow network, AdamW, keys encoded in 8 groups.
SMALL = Recipe(
    name="densecl",
    paper=PAPER_INFO,
    algorithm=Spec(
        DenseCL,
        backbone=Spec(ResNet, depth=18, width=16, stem="small_s2"),
        neck=Spec(DenseCLNeck, in_channels=128, hid_channels=128, out_channels=64),
        head=Spec(ContrastiveHead, temperature=0.1, loss=Spec(CrossEntropyLoss)),
        queue_size=1024,
        momentum=0.99,
        loss_lambda=0.3,
        start_iters=0,
        split_bn=8,
        decay_norms=False,
    ),
    views=Spec(moco_v2_views, size=28, min_scale=0.6, brightness=0.8, contrast=0.8, jitter_p=1.0, blur_p=0.0),
    optimization=Optimization(
        optimizer=Spec(AdamW, betas=(0.9, 0.95), weight_decay=0.01), base_lr=0.006, warmup_epochs=0.5
    ),
    training=Training(epochs=16, global_batch_size=64, channels_last=True, sync_bn=False),
    evaluation=Evaluation(every_epochs=4),
)

SEARCH: Search = {
    "optimization.base_lr": LogUniform(1e-3, 5e-2),
    "algorithm.head.temperature": LogUniform(0.05, 0.5),
    "algorithm.loss_lambda": Uniform(0.1, 0.7),
    "algorithm.momentum": Choice((0.9, 0.99, 0.996, 0.999)),
    "views.min_scale": Uniform(0.2, 0.9),
}
