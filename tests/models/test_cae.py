import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssl_ray.errors import UserError
from ssl_ray.models import CAE, CAEHead, CAELoss, CAENeck, CAEViT, DataPreprocessor, Progress, Tokenizer
from ssl_ray.models.backbones.cae_vit import CAEBlock, NoKeyBiasAttention, scale_factors
from ssl_ray.models.backbones.drop_path import dropped
from ssl_ray.models.backbones.vit import Attention
from ssl_ray.models.meta import without_memory
from ssl_ray.models.necks.cae_neck import CrossAttention, RegressorBlock

PROGRESS = Progress(0, 10, 0, 1)


class Brightness(Tokenizer):
    """Sixteen tokens: how bright a patch is."""

    num_tokens = 16

    def forward(self, images):
        return (F.adaptive_avg_pool2d(images, 4).mean(1) * 16).long().clamp(0, 15)


def make_cae(num_masked=6, momentum=0.0, tokenizer=None, depth=2, **options):
    torch.manual_seed(0)
    return CAE(
        CAEViT(img_size=32, patch_size=8, embed_dim=32, depth=depth, num_heads=4, **options),
        CAENeck(32, 16, regressor_depth=2, decoder_depth=1, num_heads=4),
        CAEHead(),
        tokenizer=tokenizer or Brightness(),
        num_masked=num_masked,
        momentum=momentum,
    )


def make_batch(rows=4, num_masked=6):
    generator = torch.Generator().manual_seed(1)
    views = [torch.randint(0, 256, (rows, 3, s, s), dtype=torch.uint8, generator=generator) for s in (32, 16)]
    mask = torch.zeros(rows, 16, dtype=torch.uint8)
    for row in mask:
        row[torch.randperm(16, generator=generator)[:num_masked]] = 1
    return views, {"mask": mask.view(rows, 4, 4)}


# Blocks


def test_a_key_bias_changes_nothing():
    """Added to every key alike, it cancels in the softmax: both kinds of attention are one function."""
    torch.manual_seed(0)
    full, without = Attention(16, 4), NoKeyBiasAttention(16, 4)
    nn.init.normal_(full.qkv.bias)
    without.load_state_dict(
        {"qkv.weight": full.qkv.weight, "q_bias": full.qkv.bias[:16], "v_bias": full.qkv.bias[32:]}
        | {k: v for k, v in full.state_dict().items() if k.startswith("proj")}
    )
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(without(x), full(x))


def test_cross_attention_to_itself_is_self_attention():
    torch.manual_seed(0)
    cross, own = CrossAttention(16, 4), NoKeyBiasAttention(16, 4)
    nn.init.normal_(cross.q_bias)
    nn.init.normal_(cross.v_bias)
    own.qkv.weight.data = torch.cat([cross.q.weight, cross.k.weight, cross.v.weight])
    own.q_bias, own.v_bias, own.proj = cross.q_bias, cross.v_bias, cross.proj
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(cross(x, x, x), own(x))


def test_one_head_of_attention_by_hand():
    torch.manual_seed(0)
    cross = CrossAttention(8, 1, bias=False)
    x, keys, values = torch.randn(1, 3, 8), torch.randn(1, 5, 8), torch.randn(1, 5, 8)
    q, k, v = x[0] @ cross.q.weight.T, keys[0] @ cross.k.weight.T, values[0] @ cross.v.weight.T
    expected = cross.proj((q @ k.T / math.sqrt(8)).softmax(1) @ v)
    torch.testing.assert_close(cross(x, keys, values)[0], expected)


def test_a_regressor_block_by_hand():
    torch.manual_seed(0)
    block = RegressorBlock(16, 4, layer_scale=0.1)
    x, context, p, pc = (torch.randn(2, n, 16) for n in (3, 7, 3, 7))

    def normal(y):
        return F.layer_norm(y, (16,), eps=1e-6)

    attended = block.cross_attn(normal(x + p), normal(context + pc), normal(context))
    first = normal(x + 0.1 * attended)
    torch.testing.assert_close(block(x, context, p, pc), first + 0.1 * block.mlp(first))


def test_layer_scale_zero_leaves_the_factors_out():
    assert scale_factors(8, 0.0) == 1.0
    names = dict(CAEBlock(16, 4, layer_scale=0.0).named_parameters())
    assert not any("gamma" in name for name in names)
    torch.testing.assert_close(scale_factors(8, 0.1), nn.Parameter(torch.full((8,), 0.1)))


def test_a_dropped_branch_is_zero_or_scaled_per_image():
    torch.manual_seed(0)
    out = dropped(torch.ones(400, 2, 3), 0.25, training=True)
    kept = out[:, 0, 0] != 0
    assert (out == out[:, :1, :1]).all()
    assert out[kept].unique().tolist() == pytest.approx([4 / 3])
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.1)
    assert dropped(torch.ones(3, 1, 1), 0.25, training=False).eq(1).all()


# Encoder


def test_the_encoder_sees_the_chosen_patches_and_no_other():
    model = make_cae().eval()
    views, samples = make_batch()
    image = model.data_preprocessor(views)[0]
    visible, hidden = model.split(samples)
    latent = model.backbone(image, visible)
    assert latent.shape == (4, 11, 32)
    changed = image.clone()
    for row, numbers in enumerate(hidden.tolist()):
        for number in numbers:
            y, x = divmod(number, 4)
            changed[row, :, y * 8 : y * 8 + 8, x * 8 : x * 8 + 8] += 1
    assert torch.equal(model.backbone(changed, visible), latent)
    assert not torch.allclose(model.backbone(changed, hidden), model.backbone(image, hidden))


def test_all_patches_chosen_is_the_whole_image():
    backbone = make_cae().backbone.eval()
    image = torch.randn(2, 3, 32, 32)
    everything = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(backbone(image, everything), backbone.tokens(image))
    torch.testing.assert_close(backbone.embed(image), backbone.tokens(image)[:, 1:].mean(1))
    shuffled = torch.randperm(16).expand(2, -1)
    torch.testing.assert_close(backbone(image, shuffled)[:, 1:], backbone.tokens(image)[:, 1 + shuffled[0]])
    assert torch.equal(backbone.positions(shuffled), backbone.pos_embed[:, 1 + shuffled[0]].expand(2, -1, -1))


def test_vit_b_has_as_many_parameters_as_published():
    with without_memory():
        encoder = CAEViT()
        neck = CAENeck()
    # ViT-B/16 without classifier and learned positions, less 12 key biases, plus 12 pairs of scale factors.
    vit_b = 85_798_656 - 197 * 768
    assert sum(p.numel() for p in encoder.parameters()) == vit_b - 12 * 768 + 24 * 768
    assert neck.decoder_pred.weight.shape == (8192, 768)
    assert (len(neck.regressor_blocks), len(neck.decoder_blocks)) == (4, 4)


# Algorithm


def test_split_gives_each_patch_once_in_order():
    model = make_cae()
    _, samples = make_batch()
    visible, hidden = model.split(samples)
    for row, mask in enumerate(samples["mask"].flatten(1)):
        assert hidden[row].tolist() == mask.nonzero().flatten().tolist()
        assert visible[row].tolist() == (mask == 0).nonzero().flatten().tolist()


def test_the_papers_masks_hide_75_of_196():
    with without_memory():
        model = CAE(CAEViT(embed_dim=32, depth=1, num_heads=4), CAENeck(32, 16, 1, 1, 4), CAEHead())
    mask = torch.zeros(2, 14, 14)
    mask[:, 3:8] = mask[:, 9, :5] = 1
    visible, hidden = model.split({"mask": mask})
    assert (visible.shape, hidden.shape) == ((2, 121), (2, 75))


def test_the_loss_by_hand():
    model = make_cae(momentum=0.5)
    views, samples = make_batch()
    with torch.no_grad():
        for p in model.teacher.parameters():
            p.mul_(1.1)
    output = model(views, samples, mode="loss")
    image = model.data_preprocessor(views)[0]
    visible, hidden = model.split(samples)
    logits, latent = model.neck(
        model.backbone(image, visible)[:, 1:],
        model.backbone.positions(visible),
        model.backbone.positions(hidden),
    )
    target = model.teacher.backbone(image, hidden)[:, 1:]
    tokens = model.tokenizer(views[1] / 255).flatten(1).gather(1, hidden)
    main = -logits.log_softmax(-1).gather(2, tokens[:, :, None]).mean()
    align = 2 * (latent - target).square().mean()
    torch.testing.assert_close(output.loss, main + align)
    torch.testing.assert_close(output.metrics["main"], main.detach())
    torch.testing.assert_close(output.metrics["align"], align.detach())
    right = (logits.argmax(-1) == tokens).float().mean()
    assert output.metrics["token_accuracy"] == right
    assert output.loss.item() > 1  # ln 16 = 2.77 at the start


def test_the_tokens_of_hidden_patches_matter_and_no_others():
    model = make_cae()
    views, samples = make_batch()
    hidden = samples["mask"].bool()
    tokens = torch.randint(0, 16, (4, 4, 4), generator=torch.Generator().manual_seed(2))

    def loss(given):
        return model(views, samples | {"tokens": given}, mode="loss").metrics["main"]

    assert loss(torch.where(hidden, tokens, 0)) == loss(torch.where(hidden, tokens, 5))
    assert loss(tokens) != loss(torch.where(hidden, (tokens + 1) % 16, tokens))


def test_the_tokenizer_gets_pixels_between_0_and_1():
    seen = []

    class Looking(Brightness):
        def forward(self, images):
            seen.append(images)
            return super().forward(images)

    model = make_cae(tokenizer=Looking())
    model.data_preprocessor = DataPreprocessor((0.2, 0.3, 0.4), (0.5, 0.6, 0.7))
    views, samples = make_batch()
    model(views, samples, mode="loss")
    torch.testing.assert_close(seen[0], views[1] / 255, rtol=0, atol=1e-6)


def test_perfect_predictions_cost_nothing():
    tokens, latent = torch.randint(0, 5, (2, 3)), torch.randn(2, 3, 8)
    logits = 100.0 * F.one_hot(tokens, 5)
    head = CAEHead()
    main, align = head(logits, tokens, latent, latent)
    assert (main + align).item() == pytest.approx(0, abs=1e-6)
    assert head.accuracy(logits, tokens) == 1
    main, align = CAELoss(align_weight=3.0)(torch.zeros(2, 3, 5), tokens, latent, latent + 0.5)
    assert main.item() == pytest.approx(math.log(5))
    assert align.item() == pytest.approx(3 * 0.25)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_teacher_is_the_encoder_that_made_the_loss(momentum):
    model = make_cae(momentum=momentum)
    views, samples = make_batch()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    expected = copy.deepcopy(model.backbone)
    for _ in range(3):
        teacher = model.teacher.backbone.state_dict()
        for name, p in expected.state_dict().items():
            torch.testing.assert_close(teacher[name], p)
        for old, new in zip(expected.parameters(), model.backbone.parameters(), strict=True):
            old.data = momentum * old.data + (1 - momentum) * new.data
        optimizer.zero_grad()
        model(views, samples, mode="loss").loss.backward()
        model.before_step(PROGRESS)
        optimizer.step()
        model.after_step({}, PROGRESS)
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())
    moved = zip(model.teacher.backbone.parameters(), model.backbone.parameters(), strict=True)
    assert any(not torch.equal(mine, student) for mine, student in moved)


def test_prediction_keeps_visible_tokens_and_guesses_hidden_ones():
    model = make_cae().eval()
    views, samples = make_batch()
    prediction = model(views, samples, mode="predict")
    true = model.tokenizer(views[1] / 255)
    hidden = samples["mask"].bool()
    assert torch.equal(prediction.hidden, hidden)
    assert torch.equal(prediction.tokens[~hidden], true[~hidden])
    blank = [views[0] * 0, views[1]]  # visible pixels changed, guesses may: nothing else
    assert torch.equal(model(blank, samples, mode="predict").tokens[~hidden], true[~hidden])


def test_it_learns_what_the_hidden_tokens_are():
    """Images of one brightness each: the visible patches say what the hidden ones are."""
    model = make_cae(depth=1)
    shade = torch.linspace(10, 245, 16).to(torch.uint8)[:, None, None, None]
    views = [shade.expand(-1, 3, s, s) for s in (32, 16)]
    _, samples = make_batch(16)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 80)
    for _ in range(80):
        output = model(views, samples, mode="loss")
        optimizer.zero_grad()
        output.loss.backward()
        model.before_step(PROGRESS)
        optimizer.step()
        schedule.step()
    assert output.metrics["token_accuracy"] > 0.5  # chance: 1 / 16


@pytest.mark.parametrize("number", [0, 16])
def test_refuses_to_hide_none_or_all(number):
    with pytest.raises(UserError, match="use 1 to 15"):
        make_cae(num_masked=number)


def test_says_what_does_not_fit():
    model = make_cae()
    views, samples = make_batch()
    with pytest.raises(UserError, match="cae_views"):
        model(views, {}, mode="loss")
    with pytest.raises(UserError, match="49 patches, the backbone has 16"):
        model(views, {"mask": torch.zeros(4, 7, 7)}, mode="loss")
    with pytest.raises(UserError, match="7 x 7 tokens for 4 x 4 patches"):
        model(views, samples | {"tokens": torch.zeros(4, 7, 7, dtype=torch.long)}, mode="loss")
    model.tokenizer = None
    with pytest.raises(UserError, match="give it one"):
        model(views, samples, mode="loss")
    with pytest.raises(UserError, match=r"neck.num_tokens: 12, but Brightness has 16 tokens"):
        CAE(model.backbone, CAENeck(32, 12, 1, 1, 4), CAEHead(), Brightness(), num_masked=6)
