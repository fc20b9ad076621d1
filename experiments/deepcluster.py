"""DeepCluster: k-means makes labels, a classifier learns them, every epoch anew."""

from torch.optim import SGD, AdamW

from ssl_ray.data.views import deepcluster_views
from ssl_ray.models.algorithms.deepcluster import DeepCluster
from ssl_ray.models.backbones.resnet import ResNet
from ssl_ray.models.backbones.resnet_sobel import ResNetSobel
from ssl_ray.models.heads.cls_head import ClsHead
from ssl_ray.models.losses.cross_entropy_loss import CrossEntropyLoss
from ssl_ray.models.necks.avg_pool2d_neck import AvgPool2dNeck
from ssl_ray.recipe import Evaluation, Optimization, Paper, Recipe, Training
from ssl_ray.spec import Spec
from ssl_ray.tuning.space import Choice, LogUniform, Search, Uniform

DEEPCLUSTER = Paper(
    title="Deep Clustering for Unsupervised Learning of Visual Features",
    arxiv="1807.05520",
    year=2018,
    result="46.9 linear (ResNet-50, 200 epochs)",  # MMSelfSup model zoo; the paper has AlexNet and VGG-16 only
)

# The paper's network is AlexNet; this is the ResNet-50 recipe of MMSelfSup configs/selfsup/deepcluster/
# deepcluster-sobel_resnet50_8xb64-steplr-200e_in1k, the one with published numbers.
PAPER = Recipe(
    name="deepcluster",
    paper=DEEPCLUSTER,
    algorithm=Spec(
        DeepCluster,
        backbone=Spec(ResNetSobel, depth=50),  # paper, section 4: Sobel filters instead of colours
        neck=Spec(AvgPool2dNeck),
        head=Spec(
            ClsHead, in_channels=2048, num_classes=10000, loss=Spec(CrossEntropyLoss)
        ),  # section 4.1: k
        num_samples=1281167,
        pca_dim=256,  # section 3.3
        kmeans_iterations=20,
        decay_norms=True,  # main.py: one weight decay for all
        reweight_power=1.0,  # section 3.2: images are drawn uniformly over clusters
    ),
    views=Spec(deepcluster_views, size=224, min_scale=0.08),
    optimization=Optimization(
        optimizer=Spec(SGD, momentum=0.9, weight_decay=1e-5),
        base_lr=0.05,  # MMSelfSup: 0.1 for 512 images
        schedule="constant",  # MMSelfSup: a milestone at epoch 400 of 200; paper, section 3.3: constant
    ),
    training=Training(epochs=200, global_batch_size=512, sync_bn=False),
)

# For images up to 64 px on one small machine: a narrow network, AdamW, ten times as many clusters as one expects
# classes (section 4.1), and crops that leave a small centred object in the picture. Classifiers that start anew need
# time and a rate that does not end at 0.
SMALL = Recipe(
    name="deepcluster",
    paper=DEEPCLUSTER,
    algorithm=Spec(
        DeepCluster,
        backbone=Spec(ResNet, depth=18, width=16, stem="small_s2"),
        neck=Spec(AvgPool2dNeck),
        head=Spec(ClsHead, in_channels=128, num_classes=100, loss=Spec(CrossEntropyLoss)),
        num_samples=60000,
        pca_dim=64,
        interval=2,
        decay_norms=False,
    ),
    views=Spec(deepcluster_views, size=28, min_scale=0.6, brightness=0.8, contrast=0.8),
    optimization=Optimization(
        optimizer=Spec(AdamW, betas=(0.9, 0.95), weight_decay=0.01),
        base_lr=0.004,
        warmup_epochs=0.5,
        final_lr=4e-4,
    ),
    training=Training(epochs=14, global_batch_size=64, channels_last=True),
    evaluation=Evaluation(every_epochs=4),
)

SEARCH: Search = {
    "optimization.base_lr": LogUniform(5e-4, 2e-2),
    "algorithm.head.num_classes": Choice((30, 100, 300, 1000)),
    "algorithm.interval": Choice((1, 2, 4)),
    "algorithm.pca_dim": Choice((32, 64, 128)),
    "views.min_scale": Uniform(0.2, 0.9),
}
