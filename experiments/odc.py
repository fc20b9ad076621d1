"""ODC: online deep clustering, labels that move a little at every step."""

from torch.optim import SGD, AdamW

from ssl_ray.data.views import odc_views
from ssl_ray.models.algorithms.odc import ODC
from ssl_ray.models.backbones.resnet import ResNet
from ssl_ray.models.heads.cls_head import ClsHead
from ssl_ray.models.losses.cross_entropy_loss import CrossEntropyLoss
from ssl_ray.models.memories.odc_memory import ODCMemory
from ssl_ray.models.necks.odc_neck import ODCNeck
from ssl_ray.recipe import Evaluation, Optimization, Paper, Recipe, Training
from ssl_ray.spec import Spec
from ssl_ray.tuning.space import Choice, LogUniform, Search, Uniform

ONLINE = Paper(
    title="Online Deep Clustering for Unsupervised Representation Learning",
    arxiv="2006.10645",
    year=2020,
    result="53.4 linear (440 epochs)",  # MMSelfSup model zoo
)

# OpenSelfSup, the authors' code, and MMSelfSup configs/selfsup/odc/odc_resnet50_8xb64-steplr-440e_in1k.
PAPER = Recipe(
    name="odc",
    paper=ONLINE,
    algorithm=Spec(
        ODC,
        backbone=Spec(ResNet, depth=50),
        neck=Spec(  # section 4.1: 2048 -> 512 -> 256
            ODCNeck, in_channels=2048, hid_channels=512, out_channels=256, dropout=0.5, bn_momentum=0.001
        ),
        head=Spec(ClsHead, in_channels=256, num_classes=10000, loss=Spec(CrossEntropyLoss)),  # section 4.1
        memory=Spec(
            ODCMemory, num_samples=1281167, dim=256, num_clusters=10000, momentum=0.5, min_cluster=20
        ),
        centroids_interval=10,
        small_clusters_interval=1,
        reweight_power=0.5,  # section 3.3
    ),
    views=Spec(odc_views, size=224, min_scale=0.08),
    optimization=Optimization(
        optimizer=Spec(SGD, momentum=0.9, weight_decay=1e-5),
        base_lr=0.03,  # 0.06 for 512 images
        schedule="step",
        milestones=(400,),
        gamma=0.4,
    ),
    training=Training(epochs=440, global_batch_size=512),
)

# For images up to 64 px on one small machine: a narrow network, AdamW, and few enough clusters for the smallest data
# set to fill them. In 20 epochs instead of 440 features move fast: with a memory of half the old and half the new
# nearly every image changed its label at every visit, with or without dropout, and nothing was learned: hence a slow
# one. The warm-up is short because labels got worse at each step that taught nothing.
SMALL = Recipe(
    name="odc",
    paper=ONLINE,
    algorithm=Spec(
        ODC,
        backbone=Spec(ResNet, depth=18, width=16, stem="small_s2"),
        neck=Spec(ODCNeck, in_channels=128, hid_channels=128, out_channels=64, dropout=0.0, bn_momentum=0.1),
        head=Spec(ClsHead, in_channels=64, num_classes=50, loss=Spec(CrossEntropyLoss)),
        memory=Spec(ODCMemory, num_samples=60000, dim=64, num_clusters=50, momentum=0.9, min_cluster=20),
        decay_norms=False,
    ),
    views=Spec(odc_views, size=28, min_scale=0.6, brightness=0.8, contrast=0.8),
    optimization=Optimization(
        optimizer=Spec(AdamW, betas=(0.9, 0.95), weight_decay=0.01), base_lr=0.004, warmup_epochs=0.1
    ),
    training=Training(epochs=20, global_batch_size=64, channels_last=True),
    evaluation=Evaluation(every_epochs=4),
)

SEARCH: Search = {
    "optimization.base_lr": LogUniform(5e-4, 2e-2),
    "algorithm.memory.momentum": Choice((0.5, 0.8, 0.9, 0.95)),
    "algorithm.memory.min_cluster": Choice((4, 20, 100)),
    "algorithm.reweight_power": Choice((0.0, 0.5, 1.0)),
    "views.min_scale": Uniform(0.2, 0.9),
}
