"""SwAV: crops of all sizes predict to which prototypes the large crops of their image belong."""

from torch.optim import AdamW

from ssl_ray.data.views import swav_views
from ssl_ray.models.algorithms.swav import SwAV
from ssl_ray.models.backbones.resnet import ResNet
from ssl_ray.models.heads.swav_head import SwAVHead
from ssl_ray.models.losses.swav_loss import SwAVLoss
from ssl_ray.models.necks.swav_neck import SwAVNeck
from ssl_ray.recipe import Evaluation, Optimization, Paper, Recipe, Training
from ssl_ray.spec import Spec
from ssl_ray.training.lars import LARS
from ssl_ray.tuning.space import Choice, LogUniform, Search, Uniform

PAPER_INFO = Paper(
    title="Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
    arxiv="2006.09882",
    year=2020,
    result="72.7 linear (batch 256, 200 epochs)",  # facebookresearch/swav README; MMSelfSup model zoo: 70.5
)

# facebookresearch/swav scripts/swav_200ep_bs256_pretrain.sh, and MMSelfSup
# configs/selfsup/swav/swav_resnet50_8xb32-mcrop-2-6-coslr-200e_in1k-224-96.
PAPER = Recipe(
    name="swav",
    paper=PAPER_INFO,
    algorithm=Spec(
        SwAV,
        backbone=Spec(ResNet, depth=50, zero_init_residual=True),  # swav src/resnet50.py
        neck=Spec(
            SwAVNeck, in_channels=2048, hid_channels=2048, out_channels=128
        ),  # --hidden_mlp, --feat_dim
        head=Spec(
            SwAVHead,
            in_channels=128,
            num_prototypes=3000,  # --nmb_prototypes
            loss=Spec(
                SwAVLoss,
                temperature=0.1,
                epsilon=0.05,
                sinkhorn_iterations=3,
                crops_for_assign=(0, 1),
            ),
        ),
        queue_size=3840,  # --queue_length
        queue_start_epoch=15,  # --epoch_queue_starts
        freeze_prototypes_epochs=1,  # --freeze_prototypes_niters 5005: an epoch of ImageNet
    ),
    # Section 3.2: 2 crops of 0.14 to 1 of the area at 224 px, 6 of 0.05 to 0.14 at 96; SimCLR's distortions.
    views=Spec(
        swav_views,
        size=224,
        small_size=96,
        num_views=2,
        num_small=6,
        min_scale=0.14,
        small_min_scale=0.05,
        small_max_scale=0.14,
    ),
    optimization=Optimization(
        # --wd; main_swav.py wraps SGD in apex' LARC without clipping, which takes the norms apart.
        optimizer=Spec(LARS, momentum=0.9, weight_decay=1e-6, split_norm=True),
        base_lr=0.6,  # --base_lr, for 256 images
        schedule="cosine",
        final_lr=6e-4,  # --final_lr
    ),
    training=Training(epochs=200, global_batch_size=256),
)

# For images up to 64 px on one small machine: a narrow network, AdamW, 2 small crops, and so few prototypes that a
# batch and a short queue suffice to share them out. A lower epsilon makes sharper codes: more to learn at the start.
# Crops, the small ones too, leave most of a small centred object in the picture. At twice the rate kNN
# had fallen to 65 % after 4 epochs.
SMALL = Recipe(
    name="swav",
    paper=PAPER_INFO,
    algorithm=Spec(
        SwAV,
        backbone=Spec(ResNet, depth=18, width=16, stem="small_s2"),
        neck=Spec(SwAVNeck, in_channels=128, hid_channels=128, out_channels=64),
        head=Spec(
            SwAVHead, in_channels=64, num_prototypes=128, loss=Spec(SwAVLoss, temperature=0.1, epsilon=0.03)
        ),
        queue_size=512,
        queue_start_epoch=1,
        freeze_prototypes_epochs=1,
    ),
    views=Spec(
        swav_views,
        size=28,
        small_size=16,
        num_small=2,
        min_scale=0.6,
        small_min_scale=0.3,
        small_max_scale=0.6,
        jitter_p=1.0,
        blur_p=0.0,
    ),
    optimization=Optimization(
        optimizer=Spec(AdamW, betas=(0.9, 0.95), weight_decay=0.01), base_lr=0.004, warmup_epochs=0.5
    ),
    training=Training(epochs=12, global_batch_size=64, channels_last=True),
    evaluation=Evaluation(every_epochs=4),
)

SEARCH: Search = {
    "optimization.base_lr": LogUniform(1e-3, 5e-2),
    "algorithm.head.num_prototypes": Choice((64, 128, 256, 512)),
    "algorithm.head.loss.epsilon": LogUniform(0.02, 0.1),
    "algorithm.head.loss.temperature": LogUniform(0.05, 0.3),
    "views.min_scale": Uniform(0.2, 0.8),
}
