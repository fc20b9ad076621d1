"""RotationPred: by how much was the image turned?"""

from torch.optim import SGD, AdamW

from ssl_ray.data.views import rotation_views
from ssl_ray.models.algorithms.rotation_pred import RotationPred
from ssl_ray.models.backbones.resnet import ResNet
from ssl_ray.models.heads.cls_head import ClsHead
from ssl_ray.models.losses.cross_entropy_loss import CrossEntropyLoss
from ssl_ray.recipe import Evaluation, Optimization, Paper, Recipe, Training
from ssl_ray.spec import Spec
from ssl_ray.tuning.space import Choice, LogUniform, Search, Uniform

PAPER_INFO = Paper(
    title="Unsupervised Representation Learning by Predicting Image Rotations",
    arxiv="1803.07728",
    year=2018,
    result="47.0 linear (70 epochs)",  # MMSelfSup model zoo; the paper has AlexNet only
)

# ResNet-50: MMSelfSup configs/selfsup/rotation_pred/rotation-pred_resnet50_8xb16-steplr-70e_in1k.
PAPER = Recipe(
    name="rotation_pred",
    paper=PAPER_INFO,
    algorithm=Spec(
        RotationPred,
        backbone=Spec(ResNet, depth=50),
        head=Spec(  # section 3.1: four rotations
            ClsHead, in_channels=2048, num_classes=4, with_avg_pool=True, loss=Spec(CrossEntropyLoss)
        ),
    ),
    views=Spec(rotation_views, size=224, min_scale=0.08),  # MMSelfSup: crop, flip
    optimization=Optimization(
        optimizer=Spec(SGD, momentum=0.9, weight_decay=1e-4),
        base_lr=0.4,  # 0.2 for 128 images, that is 512 turned ones
        warmup_epochs=5,
        warmup_start=0.1,
        schedule="step",
        milestones=(30, 50),
        gamma=0.1,
    ),
    training=Training(epochs=70, global_batch_size=128, sync_bn=True),
)

# Mild crops: what is up shows in the outline of a whole garment.
SMALL = Recipe(
    name="rotation_pred",
    paper=PAPER_INFO,
    algorithm=Spec(
        RotationPred,
        backbone=Spec(ResNet, depth=18, width=16, stem="small_s2"),
        head=Spec(ClsHead, in_channels=128, num_classes=4, with_avg_pool=True, loss=Spec(CrossEntropyLoss)),
        decay_norms=False,
    ),
    views=Spec(rotation_views, size=28, min_scale=0.5),
    optimization=Optimization(
        optimizer=Spec(AdamW, betas=(0.9, 0.95), weight_decay=0.05), base_lr=0.004, warmup_epochs=0.5
    ),
    training=Training(epochs=8, global_batch_size=64, channels_last=True),
    evaluation=Evaluation(every_epochs=2),
)

SEARCH: Search = {
    "optimization.base_lr": LogUniform(1e-3, 5e-2),
    "training.epochs": Choice((4, 8, 16)),
    "views.min_scale": Uniform(0.1, 0.9),
}
