"""SimMIM: predict the pixels of the squares that were hidden. PAPER has 100 epochs, PAPER_800 as many as it says."""

from torch.optim import AdamW

from ssl_ray.data.views import simmim_views
from ssl_ray.models.algorithms.simmim import SimMIM
from ssl_ray.models.backbones.simmim_swin import SimMIMSwinTransformer
from ssl_ray.models.heads.simmim_head import SimMIMHead
from ssl_ray.models.losses.simmim_reconstruction_loss import SimMIMReconstructionLoss
from ssl_ray.models.necks.simmim_neck import SimMIMNeck
from ssl_ray.recipe import Evaluation, Optimization, Paper, Recipe, Training, overrides
from ssl_ray.spec import Spec
from ssl_ray.tuning.space import Choice, LogUniform, Search, Uniform

PAPER_INFO = Paper(
    title="SimMIM: A Simple Framework for Masked Image Modeling",
    arxiv="2111.09886",
    year=2022,
    result="82.8 fine-tuned (100 epochs)",  # microsoft/SimMIM README, Swin-B at 192 px; MMSelfSup model zoo: 82.7
)

# Swin-B: microsoft/SimMIM simmim_pretrain__swin_base__img192_window6__100ep,
# MMSelfSup configs/selfsup/simmim/simmim_swin-base_16xb128-amp-coslr-100e_in1k-192.
PAPER = Recipe(
    name="simmim",
    paper=PAPER_INFO,
    algorithm=Spec(
        SimMIM,
        backbone=Spec(  # Swin-B, section 4.1.1; no drop path in pre-training
            SimMIMSwinTransformer,
            img_size=192,
            patch_size=4,
            embed_dim=128,
            depths=(2, 2, 18, 2),
            num_heads=(4, 8, 16, 32),
            window_size=6,
            drop_path=0.0,
        ),
        neck=Spec(SimMIMNeck, in_channels=1024, encoder_stride=32),  # section 3.3: linear head
        head=Spec(SimMIMHead, patch_size=4, loss=Spec(SimMIMReconstructionLoss)),
    ),
    views=Spec(  # section 4.1.1: squares of 32 px, 60 % hidden; crop and flip only
        simmim_views, size=192, patch_size=4, mask_patch_size=32, mask_ratio=0.6, min_scale=0.67
    ),
    optimization=Optimization(
        optimizer=Spec(AdamW, betas=(0.9, 0.999), weight_decay=0.05),
        base_lr=1e-4,  # 8e-4 for 2048 images
        warmup_epochs=10,
        warmup_start=5e-3,
        schedule="cosine",
        final_lr=4e-5,
        clip_grad_norm=5.0,
    ),
    training=Training(epochs=100, global_batch_size=2048, precision="bf16"),
)

# microsoft/SimMIM simmim_pretrain__swin_base__img192_window6__800ep: half the rate, and one step instead of a cosine.
PAPER_800 = overrides(
    PAPER,
    {
        "paper.result": "84.0 fine-tuned (800 epochs)",  # microsoft/SimMIM README, at 224 px; MMSelfSup model zoo: 83.7
        "optimization.base_lr": 5e-5,  # 4e-4 for 2048 images
        "optimization.schedule": "step",
        "optimization.milestones": (700,),
        "optimization.gamma": 0.1,
        "optimization.final_lr": 0.0,  # of a cosine only
        "training.epochs": 800,
    },
)

# For images up to 64 px on one small machine: a narrow network of two stages. What is hidden are squares of 8 px, 10 of
# 16: smaller ones are guessed from the pixels beside them. Squares of 4 px in 28 px, at a higher rate, came to 53 % of
# kNN in ten epochs, these to 55.
SMALL = Recipe(
    name="simmim",
    paper=PAPER_INFO,
    algorithm=Spec(
        SimMIM,
        backbone=Spec(
            SimMIMSwinTransformer,
            img_size=32,
            patch_size=2,
            embed_dim=32,
            depths=(2, 2),
            num_heads=(2, 4),
            window_size=8,
        ),
        neck=Spec(SimMIMNeck, in_channels=64, encoder_stride=4),
        head=Spec(SimMIMHead, patch_size=2, loss=Spec(SimMIMReconstructionLoss)),
    ),
    views=Spec(simmim_views, size=32, patch_size=2, mask_patch_size=8, mask_ratio=0.6, min_scale=0.67),
    optimization=Optimization(
        optimizer=Spec(AdamW, betas=(0.9, 0.999), weight_decay=0.05),
        base_lr=2e-3,
        warmup_epochs=1,
        clip_grad_norm=5.0,
    ),
    training=Training(epochs=6, global_batch_size=128),
    evaluation=Evaluation(every_epochs=2),
)

SEARCH: Search = {
    "optimization.base_lr": LogUniform(5e-4, 2e-2),
    "views.mask_ratio": Uniform(0.3, 0.8),
    "views.mask_patch_size": Choice((4, 8, 16)),
}
