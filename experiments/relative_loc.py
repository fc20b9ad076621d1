"""RelativeLoc: where does a patch lie, seen from the one in the centre?"""

from torch.optim import SGD, AdamW

from ssl_ray.data.views import relative_loc_views
from ssl_ray.models.algorithms.relative_loc import RelativeLoc
from ssl_ray.models.backbones.resnet import ResNet
from ssl_ray.models.heads.cls_head import ClsHead
from ssl_ray.models.losses.cross_entropy_loss import CrossEntropyLoss
from ssl_ray.models.necks.relative_loc_neck import RelativeLocNeck
from ssl_ray.recipe import Evaluation, Optimization, Paper, Recipe, Training
from ssl_ray.spec import Spec
from ssl_ray.tuning.space import Choice, LogUniform, Search, Uniform

PAPER_INFO = Paper(
    title="Unsupervised Visual Representation Learning by Context Prediction",
    arxiv="1505.05192",
    year=2015,
    result="40.4 linear (70 epochs)",  # MMSelfSup model zoo; the paper has AlexNet-like networks only
)

# ResNet-50: MMSelfSup configs/selfsup/relative_loc/relative-loc_resnet50_8xb64-steplr-70e_in1k.
PAPER = Recipe(
    name="relative_loc",
    paper=PAPER_INFO,
    algorithm=Spec(
        RelativeLoc,
        backbone=Spec(ResNet, depth=50),
        neck=Spec(RelativeLocNeck, in_channels=2048, out_channels=4096, dropout=0.5, bn_momentum=0.003),
        head=Spec(  # section 3: eight positions
            ClsHead, in_channels=4096, num_classes=8, loss=Spec(CrossEntropyLoss), init_std=0.005
        ),
        decay_factor=5.0,
    ),
    views=Spec(relative_loc_views, size=255, patch_side=64, gray_p=0.66),  # MMSelfSup; the paper has 96 px
    optimization=Optimization(
        optimizer=Spec(SGD, momentum=0.9, weight_decay=1e-4),
        base_lr=0.1,  # 0.2 for 512 images
        warmup_epochs=5,
        warmup_start=0.1,
        schedule="step",
        milestones=(30, 50),
        gamma=0.1,
    ),
    training=Training(epochs=70, global_batch_size=512, sync_bn=False),
)

# The whole image in nine patches; the stem keeps their few pixels. Patches of 10 px have room in cells of 14: with
# 14 px edges run on, 95 % of the places are told right, and the features end below the untrained ones. The linear probe
# gains from the strong dropout: with 0.5 it does not get past the untrained network's.
SMALL = Recipe(
    name="relative_loc",
    paper=PAPER_INFO,
    algorithm=Spec(
        RelativeLoc,
        backbone=Spec(ResNet, depth=18, width=16, stem="small_s2"),
        neck=Spec(RelativeLocNeck, in_channels=128, out_channels=256, dropout=0.8, bn_momentum=0.1),
        head=Spec(ClsHead, in_channels=256, num_classes=8, loss=Spec(CrossEntropyLoss), init_std=0.005),
        decay_norms=False,
    ),
    views=Spec(relative_loc_views, size=42, patch_side=10, crop_fraction=1.0),
    optimization=Optimization(
        optimizer=Spec(AdamW, betas=(0.9, 0.95), weight_decay=0.05), base_lr=0.008, warmup_epochs=0.5
    ),
    training=Training(epochs=8, global_batch_size=128, channels_last=True),
    evaluation=Evaluation(every_epochs=2),
)

SEARCH: Search = {
    "optimization.base_lr": LogUniform(1e-3, 5e-2),
    "algorithm.neck.dropout": Uniform(0.0, 0.9),
    "views.patch_side": Choice((8, 10, 12, 14)),
}
