"""CAE: regress the latents of hidden patches, and decode their tokens. PAPER_DALLE has the published tokenizer."""

from torch.optim import AdamW

from ssl_ray.data.views import cae_views
from ssl_ray.models.algorithms.cae import CAE
from ssl_ray.models.backbones.cae_vit import CAEViT
from ssl_ray.models.heads.cae_head import CAEHead
from ssl_ray.models.losses.cae_loss import CAELoss
from ssl_ray.models.necks.cae_neck import CAENeck
from ssl_ray.models.tokenizers.dalle_tokenizer import DALLETokenizer
from ssl_ray.models.tokenizers.patch_codebook import PatchCodebook
from ssl_ray.recipe import Evaluation, Optimization, Paper, Recipe, Training, override
from ssl_ray.spec import Spec
from ssl_ray.tuning.space import Choice, LogUniform, Search, Uniform

PAPER_INFO = Paper(
    title="Context Autoencoder for Self-Supervised Representation Learning",
    arxiv="2202.03026",
    year=2022,
    result="83.3 fine-tuned (300 epochs, DALL-E tokens)",  # MMSelfSup model zoo; official: 83.6, 64.5 linear
)

# ViT-B/16: atten4vis/CAE scripts/cae_base_*.sh, MMSelfSup configs/selfsup/cae/cae_vit-base-p16_16xb128-amp-coslr-300e.
# The one departure is where the tokens come from: a codebook of as many words, learned from the images, needs no
# download. For the published number take PAPER_DALLE.
PAPER = Recipe(
    name="cae",
    paper=PAPER_INFO,
    algorithm=Spec(
        CAE,
        backbone=Spec(  # ViT-B/16; layer scale and drop path: official scripts
            CAEViT,
            img_size=224,
            patch_size=16,
            embed_dim=768,
            depth=12,
            num_heads=12,
            layer_scale=0.1,
            drop_path=0.1,
        ),
        neck=Spec(  # section 4: 4 regressor and 4 decoder blocks, as wide as the encoder
            CAENeck,
            embed_dim=768,
            num_tokens=8192,
            regressor_depth=4,
            decoder_depth=4,
            num_heads=12,
            layer_scale=0.1,
            drop_path=0.1,
        ),
        head=Spec(CAEHead, loss=Spec(CAELoss, align_weight=2.0)),  # official --align_loss_weight 2
        tokenizer=Spec(PatchCodebook, num_tokens=8192, num_patches=196, cell_size=8),
        num_masked=75,  # MMSelfSup; the current official scripts hide 98
        momentum=0.0,  # official --base_momentum 0
    ),
    # Section 4: crop and flip only, blocks of hidden patches as in BEiT; tokens from the same crop at 112 px.
    views=Spec(
        cae_views, size=224, token_size=112, patch_size=16, num_masked=75, min_masked=16, min_scale=0.08
    ),
    optimization=Optimization(
        optimizer=Spec(AdamW, betas=(0.9, 0.999), weight_decay=0.05),
        base_lr=1.875e-4,  # 1.5e-3 for 2048 images
        warmup_epochs=10,
        schedule="cosine",
        final_lr=1e-5,
        clip_grad_norm=3.0,
    ),
    training=Training(epochs=300, global_batch_size=2048, precision="bf16"),  # MMSelfSup: AMP
)

# The weights are not part of this package: DALLETokenizer says where to get them. Another place is
# --set algorithm.tokenizer.weights=/shared/dalle_encoder.pth
PAPER_DALLE = override(PAPER, "algorithm.tokenizer", Spec(DALLETokenizer, weights="dalle_encoder.pth"))

SMALL = Recipe(
    name="cae",
    paper=PAPER_INFO,
    algorithm=Spec(
        CAE,
        backbone=Spec(CAEViT, img_size=28, patch_size=4, embed_dim=96, depth=4, num_heads=4, layer_scale=0.1),
        neck=Spec(
            CAENeck,
            embed_dim=96,
            num_tokens=256,
            regressor_depth=1,
            decoder_depth=1,
            num_heads=4,
            layer_scale=0.1,
        ),
        head=Spec(CAEHead, loss=Spec(CAELoss, align_weight=2.0)),
        tokenizer=Spec(PatchCodebook, num_tokens=256, num_patches=49, cell_size=4),
        num_masked=25,
    ),
    views=Spec(cae_views, size=28, token_size=28, patch_size=4, num_masked=25, min_masked=4, min_scale=0.4),
    optimization=Optimization(
        optimizer=Spec(AdamW, betas=(0.9, 0.999), weight_decay=0.05),
        base_lr=1.5e-3,
        warmup_epochs=1,
        clip_grad_norm=3.0,
    ),
    training=Training(epochs=12, global_batch_size=256),
    evaluation=Evaluation(every_epochs=4),
)

SEARCH: Search = {
    "optimization.base_lr": LogUniform(2e-4, 1e-2),
    "algorithm.head.loss.align_weight": Choice((0.5, 1.0, 2.0, 4.0)),
    "algorithm.tokenizer.norm_patch": Choice((False, True)),
    "views.num_masked": Choice((20, 25, 30, 36)),
    "views.min_scale": Uniform(0.2, 0.9),
}
