"""SimCLR: two views of an image attract, all others of the batch repel."""

from torch.optim import AdamW

from ssl_ray.data.views import simclr_views
from ssl_ray.models.algorithms.simclr import SimCLR
from ssl_ray.models.backbones.resnet import ResNet
from ssl_ray.models.heads.contrastive_head import ContrastiveHead
from ssl_ray.models.losses.cross_entropy_loss import CrossEntropyLoss
from ssl_ray.models.necks.nonlinear_neck import NonLinearNeck
from ssl_ray.recipe import Evaluation, Optimization, Paper, Recipe, Training
from ssl_ray.spec import Spec
from ssl_ray.training.lars import LARS
from ssl_ray.tuning.space import LogUniform, Search, Uniform

PAPER_INFO = Paper(
    title="A Simple Framework for Contrastive Learning of Visual Representations",
    arxiv="2002.05709",
    year=2020,
    result="62.7 linear (batch 256, 200 epochs)",  # MMSelfSup model zoo; 66.9 with a batch of 4096
)

# Version 1 of google-research/simclr with the batch and epochs of MMSelfSup
# configs/selfsup/simclr/simclr_resnet50_8xb32-coslr-200e.
PAPER = Recipe(
    name="simclr",
    paper=PAPER_INFO,
    algorithm=Spec(
        SimCLR,
        backbone=Spec(
            ResNet, depth=50, zero_init_residual=True
        ),  # MMSelfSup configs/selfsup/_base_/models/simclr.py
        neck=Spec(
            NonLinearNeck, in_channels=2048, hid_channels=2048, out_channels=128
        ),  # section 2.3: 2 layers, 128-d
        head=Spec(ContrastiveHead, temperature=0.1, loss=Spec(CrossEntropyLoss)),  # table 5 and appendix B.6
    ),
    # Appendix A: crops of 0.08 to 1 of the area, jitter (0.8, 0.8, 0.8, 0.2) with p 0.8, gray 0.2, blur 0.5;
    # data_util.py: resampled bicubically.
    views=Spec(simclr_views, size=224),
    optimization=Optimization(
        # Decay: section 2.3. The official lars_optimizer.py multiplies by lr before the momentum.
        optimizer=Spec(LARS, momentum=0.9, weight_decay=1e-6, lr_in_momentum=True),
        base_lr=0.3,  # section 2.3: 0.3 * batch / 256
        warmup_epochs=10,  # section 2.3
        schedule="cosine",  # section 2.3
    ),
    training=Training(epochs=200, global_batch_size=256),  # SyncBN: section 2.2, "global BN"
)

# For images up to 64 px on one small machine: a narrow network and AdamW, which needs no large batch; blur would leave
# too little of 28 px.
SMALL = Recipe(
    name="simclr",
    paper=PAPER_INFO,
    algorithm=Spec(
        SimCLR,
        backbone=Spec(ResNet, depth=18, width=16, stem="small_s2"),
        neck=Spec(NonLinearNeck, in_channels=128, hid_channels=128, out_channels=64),
        head=Spec(ContrastiveHead, temperature=0.2, loss=Spec(CrossEntropyLoss)),
    ),
    views=Spec(simclr_views, size=28, min_scale=0.4, jitter_p=1.0, blur_p=0.0, interpolation="bilinear"),
    optimization=Optimization(
        optimizer=Spec(AdamW, betas=(0.9, 0.95), weight_decay=0.01), base_lr=0.006, warmup_epochs=0.5
    ),
    training=Training(epochs=12, global_batch_size=128, channels_last=True),
    evaluation=Evaluation(every_epochs=4),
)

SEARCH: Search = {
    "optimization.base_lr": LogUniform(1e-3, 5e-2),
    "algorithm.head.temperature": LogUniform(0.05, 1.0),
    "views.min_scale": Uniform(0.1, 0.8),
}
