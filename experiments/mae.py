"""MAE: reconstruct the three quarters of an image that were hidden. PAPER is ViT-B/16, PAPER_LARGE ViT-L/16."""

from torch.optim import AdamW

from ssl_ray.data.views import mae_views
from ssl_ray.models.algorithms.mae import MAE
from ssl_ray.models.backbones.mae_vit import MAEViT
from ssl_ray.models.heads.mae_pretrain_head import MAEPretrainHead
from ssl_ray.models.losses.mae_reconstruction_loss import MAEReconstructionLoss
from ssl_ray.models.necks.mae_pretrain_decoder import MAEPretrainDecoder
from ssl_ray.recipe import Evaluation, Optimization, Paper, Recipe, Training, overrides
from ssl_ray.spec import Spec
from ssl_ray.tuning.space import Choice, LogUniform, Search, Uniform

PAPER_INFO = Paper(
    title="Masked Autoencoders Are Scalable Vision Learners",
    arxiv="2111.06377",
    year=2022,
    result="83.3 fine-tuned, 62.5 linear (400 epochs)",  # MMSelfSup model zoo
)

# ViT-B/16: facebookresearch/mae main_pretrain.py, MMSelfSup configs/selfsup/mae/mae_vit-base-p16_8xb512-amp-coslr-400e.
PAPER = Recipe(
    name="mae",
    paper=PAPER_INFO,
    algorithm=Spec(
        MAE,
        backbone=Spec(  # ViT-B/16; mask ratio: section 4.1 and figure 5
            MAEViT, img_size=224, patch_size=16, embed_dim=768, depth=12, num_heads=12, mask_ratio=0.75
        ),
        neck=Spec(  # table 1a and 1b: 8 blocks, 512-d
            MAEPretrainDecoder,
            num_patches=196,
            patch_size=16,
            embed_dim=768,
            decoder_embed_dim=512,
            decoder_depth=8,
            decoder_num_heads=16,
        ),
        head=Spec(
            MAEPretrainHead, patch_size=16, norm_pix=True, loss=Spec(MAEReconstructionLoss)
        ),  # table 1d
    ),
    views=Spec(mae_views, size=224, patch_size=16, min_scale=0.2),  # table 1e: crop and flip only
    optimization=Optimization(  # table 8
        optimizer=Spec(AdamW, betas=(0.9, 0.95), weight_decay=0.05),
        base_lr=1.5e-4,
        warmup_epochs=40,
        schedule="cosine",
    ),
    training=Training(
        epochs=400, global_batch_size=4096, precision="bf16"
    ),  # table 8; MMSelfSup: 400 epochs, AMP
)

# ViT-L/16: facebookresearch/mae models_mae.py, mae_vit_large_patch16; MMSelfSup configs/selfsup/mae/
# mae_vit-large-p16_8xb512-amp-coslr-400e. All else is as for ViT-B.
PAPER_LARGE = overrides(
    PAPER,
    {
        "paper.result": "85.2 fine-tuned, 70.7 linear (ViT-L/16, 400 epochs)",  # MMSelfSup model zoo
        "algorithm.backbone.embed_dim": 1024,
        "algorithm.backbone.depth": 24,
        "algorithm.backbone.num_heads": 16,
        "algorithm.neck.embed_dim": 1024,
    },
)

SMALL = Recipe(
    name="mae",
    paper=PAPER_INFO,
    algorithm=Spec(
        MAE,
        backbone=Spec(MAEViT, img_size=28, patch_size=4, embed_dim=96, depth=4, num_heads=4, mask_ratio=0.75),
        neck=Spec(
            MAEPretrainDecoder,
            num_patches=49,
            patch_size=4,
            embed_dim=96,
            decoder_embed_dim=64,
            decoder_depth=1,
            decoder_num_heads=4,
        ),
        # Flat patches are common here, and dividing by their tiny deviation would make noise the target.
        head=Spec(MAEPretrainHead, patch_size=4, norm_pix=False, loss=Spec(MAEReconstructionLoss)),
    ),
    views=Spec(mae_views, size=28, patch_size=4, min_scale=0.4),
    optimization=Optimization(
        optimizer=Spec(AdamW, betas=(0.9, 0.95), weight_decay=0.05), base_lr=1.5e-3, warmup_epochs=1
    ),
    training=Training(epochs=20, global_batch_size=256),
    evaluation=Evaluation(every_epochs=5),
)

SEARCH: Search = {
    "optimization.base_lr": LogUniform(2e-4, 1e-2),
    "algorithm.backbone.mask_ratio": Choice((0.5, 0.6, 0.75, 0.85)),
    "algorithm.head.norm_pix": Choice((False, True)),
    "views.min_scale": Uniform(0.2, 0.9),
}
