"""NPID: every image is a class, told from the others by a memory bank of their embeddings."""

from torch.optim import SGD, AdamW

from ssl_ray.data.views import npid_views
from ssl_ray.models.algorithms.npid import NPID
from ssl_ray.models.backbones.resnet import ResNet
from ssl_ray.models.heads.contrastive_head import ContrastiveHead
from ssl_ray.models.losses.cross_entropy_loss import CrossEntropyLoss
from ssl_ray.models.memories.simple_memory import SimpleMemory
from ssl_ray.models.necks.linear_neck import LinearNeck
from ssl_ray.recipe import Evaluation, Optimization, Paper, Recipe, Training
from ssl_ray.spec import Spec
from ssl_ray.tuning.space import Choice, LogUniform, Search, Uniform

PAPER_INFO = Paper(
    title="Unsupervised Feature Learning via Non-Parametric Instance Discrimination",
    arxiv="1805.01978",
    year=2018,
    result="58.5 linear (200 epochs)",  # zhirongw/lemniscate.pytorch README; MMSelfSup model zoo: 58.3
)

# MMSelfSup configs/selfsup/npid/npid_resnet50_8xb32-steplr-200e and the authors' later setting: the softmax of 65536
# negatives. (The paper's own, NCE with 4096, reaches less.)
PAPER = Recipe(
    name="npid",
    paper=PAPER_INFO,
    algorithm=Spec(
        NPID,
        backbone=Spec(ResNet, depth=50),
        neck=Spec(LinearNeck, in_channels=2048, out_channels=128),  # section 4.1: 128-d
        head=Spec(ContrastiveHead, temperature=0.07, loss=Spec(CrossEntropyLoss)),  # section 4.1
        memory=Spec(SimpleMemory, num_samples=1281167, dim=128, momentum=0.5),  # the images of ImageNet-1k
        num_negatives=65536,
    ),
    views=Spec(npid_views, size=224, min_scale=0.2),
    optimization=Optimization(
        optimizer=Spec(SGD, momentum=0.9, weight_decay=1e-4),
        base_lr=0.03,  # section 4.1, for 256 images
        schedule="step",
        milestones=(120, 160),  # section 4.1 begins at 120 with steps of 40
        gamma=0.1,
    ),
    training=Training(epochs=200, global_batch_size=256),  # section 4.1
)

# For images up to 64 px on one small machine: a narrow network and AdamW; fewer negatives for fewer images. Mild crops
# and jitter suit small centred objects. The bank starts with random vectors, and a network that learns to find them
# unlearns what it sees: so the rate stays low until every row has been written twice, by the newest network alone.
SMALL = Recipe(
    name="npid",
    paper=PAPER_INFO,
    algorithm=Spec(
        NPID,
        backbone=Spec(ResNet, depth=18, width=16, stem="small_s2"),
        neck=Spec(LinearNeck, in_channels=128, out_channels=128),
        head=Spec(ContrastiveHead, temperature=0.1, loss=Spec(CrossEntropyLoss)),
        memory=Spec(SimpleMemory, num_samples=60000, dim=128, momentum=0.0),
        num_negatives=4096,
        decay_norms=False,
    ),
    views=Spec(npid_views, size=28, min_scale=0.6, brightness=0.4, contrast=0.4),
    optimization=Optimization(
        optimizer=Spec(AdamW, betas=(0.9, 0.95), weight_decay=0.01), base_lr=0.006, warmup_epochs=2
    ),
    training=Training(epochs=20, global_batch_size=64, channels_last=True),
    evaluation=Evaluation(every_epochs=4),
)

SEARCH: Search = {
    "optimization.base_lr": LogUniform(1e-3, 5e-2),
    "algorithm.head.temperature": LogUniform(0.05, 0.3),
    "algorithm.memory.momentum": Choice((0.0, 0.25, 0.5, 0.75)),
    "views.min_scale": Uniform(0.2, 0.9),
    "views.brightness": Uniform(0.2, 0.8),
}
