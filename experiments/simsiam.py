"""SimSiam: a predictor and a stop-gradient, no negatives and no teacher."""

from torch.optim import SGD, AdamW

from ssl_ray.data.views import moco_v2_views
from ssl_ray.models.algorithms.simsiam import SimSiam
from ssl_ray.models.backbones.resnet import ResNet
from ssl_ray.models.heads.latent_predict_head import LatentPredictHead
from ssl_ray.models.losses.cosine_similarity_loss import CosineSimilarityLoss
from ssl_ray.models.necks.nonlinear_neck import NonLinearNeck
from ssl_ray.recipe import Evaluation, Optimization, Paper, Recipe, Training
from ssl_ray.spec import Spec
from ssl_ray.tuning.space import Choice, LogUniform, Search, Uniform

PAPER_INFO = Paper(
    title="Exploring Simple Siamese Representation Learning",
    arxiv="2011.10566",
    year=2021,
    result="68.3 linear (100 epochs)",  # facebookresearch/simsiam README, batch 256; MMSelfSup model zoo: 68.3
)

# facebookresearch/simsiam main_simsiam.py --fix-pred-lr, MMSelfSup configs/selfsup/simsiam/simsiam_resnet50_8xb32-
# coslr-100e.
PAPER = Recipe(
    name="simsiam",
    paper=PAPER_INFO,
    algorithm=Spec(
        SimSiam,
        backbone=Spec(ResNet, depth=50, zero_init_residual=True),  # main_simsiam.py
        neck=Spec(  # section 3: three layers with BN, no ReLU after the last; simsiam/builder.py: its BN is not affine
            NonLinearNeck,
            in_channels=2048,
            hid_channels=2048,
            out_channels=2048,
            num_layers=3,
            with_last_bn_affine=False,
        ),
        head=Spec(
            LatentPredictHead,
            predictor=Spec(  # section 3: 2 layers, a bottleneck of 512, no BN after the last
                NonLinearNeck,
                in_channels=2048,
                hid_channels=512,
                out_channels=2048,
                with_last_bias=True,
                with_last_bn=False,
                with_avg_pool=False,
            ),
            loss=Spec(CosineSimilarityLoss),  # eq. 1
        ),
        fix_predictor_lr=True,  # section 4.2
        decay_norms=True,  # main_simsiam.py: one weight decay for all
    ),
    views=Spec(moco_v2_views, size=224, min_scale=0.2),  # appendix A
    optimization=Optimization(
        optimizer=Spec(SGD, momentum=0.9, weight_decay=1e-4),  # section 3
        base_lr=0.05,  # section 3, for 256 images
        schedule="cosine",
    ),
    training=Training(epochs=100, global_batch_size=256),  # section 3; batch 256 and SyncBN: MMSelfSup
)

# For images up to 64 px on one small machine: a narrow network, AdamW and many small steps. The rate is near the edge:
# in a trial a network twice as wide collapsed at 0.02.
SMALL = Recipe(
    name="simsiam",
    paper=PAPER_INFO,
    algorithm=Spec(
        SimSiam,
        backbone=Spec(ResNet, depth=18, width=16, stem="small_s2"),
        neck=Spec(
            NonLinearNeck,
            in_channels=128,
            hid_channels=128,
            out_channels=128,
            num_layers=3,
            with_last_bn_affine=False,
        ),
        head=Spec(
            LatentPredictHead,
            predictor=Spec(
                NonLinearNeck,
                in_channels=128,
                hid_channels=32,
                out_channels=128,
                with_last_bias=True,
                with_last_bn=False,
                with_avg_pool=False,
            ),
            loss=Spec(CosineSimilarityLoss),
        ),
        decay_norms=False,  # AdamW would pull the norms' gains to zero at a rate made for weights
    ),
    views=Spec(moco_v2_views, size=28, min_scale=0.6, brightness=0.8, contrast=0.8, jitter_p=1.0, blur_p=0.0),
    optimization=Optimization(
        optimizer=Spec(AdamW, betas=(0.9, 0.95), weight_decay=0.01), base_lr=0.012, warmup_epochs=0.5
    ),
    training=Training(epochs=16, global_batch_size=64, channels_last=True),
    evaluation=Evaluation(every_epochs=4),
)

SEARCH: Search = {
    "optimization.base_lr": LogUniform(1e-3, 2e-2),
    "algorithm.head.predictor.hid_channels": Choice((16, 32, 64)),
    "algorithm.fix_predictor_lr": Choice((False, True)),
    "views.min_scale": Uniform(0.2, 0.9),
}
