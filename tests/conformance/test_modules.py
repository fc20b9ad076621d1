"""Losses, heads, memories, optimiser, schedules and transforms against numbers recorded from MMSelfSup.

Every record of golden/modules.pt has its check here; one without fails. A record's name begins with what it is of.
"""

import copy
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from ssl_ray.data.pipeline import ViewPipeline
from ssl_ray.data.views import relative_loc_views, simmim_views
from ssl_ray.interop import mmselfsup
from ssl_ray.interop.mmselfsup.config import build_module
from ssl_ray.interop.mmselfsup.modules import COMMON
from ssl_ray.models import (
    NPID,
    CAEHead,
    CAELoss,
    ClsHead,
    ContrastiveHead,
    CosineSimilarityLoss,
    CrossCorrelationLoss,
    CrossEntropyLoss,
    DALLETokenizer,
    DataPreprocessor,
    LatentCrossCorrelationHead,
    LinearNeck,
    MAEPretrainHead,
    MAEReconstructionLoss,
    MoCoV3Head,
    ODCMemory,
    Progress,
    RelativeLoc,
    RelativeLocNeck,
    ResNet,
    RotationPred,
    SimMIMHead,
    SimMIMReconstructionLoss,
    SimpleMemory,
    SwAVHead,
    SwAVLoss,
    Teacher,
)
from ssl_ray.models.backbones.sobel import Sobel
from ssl_ray.models.backbones.vit import sincos_positions
from ssl_ray.models.clustering import class_weights, kmeans, whiten
from ssl_ray.models.losses.sinkhorn import sinkhorn
from ssl_ray.models.tokenizers.dalle_tokenizer import DALLEEncoder
from ssl_ray.recipe import Optimization
from ssl_ray.spec import Spec
from ssl_ray.training.lars import LARS
from ssl_ray.training.schedules import cosine, learning_rate
from tests.conformance.orders.odc import SklearnSplit
from tests.conformance.test_golden import FILES, FOLDER, PATHS, read

RECORDS = [
    pytest.param(name, record, id=f"{path.relative_to(FOLDER).with_suffix('')}-{name}")
    for path in PATHS
    if path not in FILES and isinstance(read(path), dict)
    for name, record in read(path).items()
    if isinstance(record, dict) and "about" in record
]
EXACT, SINGLE = 1e-9, 1e-6  # of the largest entry: recorded in float64, in float32
ROUNDINGS = 64 * torch.finfo(torch.float64).eps  # of a sum whose terms are as large as the largest gradient

Record = dict[str, Any]
Check = Callable[[Record], None]
CHECKS: dict[str, Check] = {}


def checks(beginning: str) -> Callable[[Check], Check]:
    def register(function: Check) -> Check:
        CHECKS[beginning] = function
        return function

    return register


@pytest.mark.parametrize(("name", "record"), RECORDS)
def test_record(name, record):
    known = [beginning for beginning in CHECKS if name.startswith(beginning)]
    assert known, "a record without a check"
    CHECKS[max(known, key=len)](record)


def close(ours: Any, recorded: Any, bound: float, what: str = "", dust: float = 0.0) -> None:
    """dust: what rounding alone leaves, where the value itself may be 0."""
    ours, recorded = (torch.as_tensor(x, dtype=torch.float64) for x in (ours, recorded))
    assert ours.shape == recorded.shape, what
    worst, largest = (ours - recorded).abs().max().item(), recorded.abs().max().item()
    assert worst <= max(bound * largest, dust), f"{what}: off by {worst:.2e}, largest entry {largest:.2e}"


def arguments(record: Record, renamed: dict[str, str] | None = None) -> dict[str, Any]:
    """The config's settings under our names; modules within are left out."""
    renamed = renamed or {}
    return {
        renamed.get(k, k): v for k, v in record["config"].items() if k != "type" and not isinstance(v, dict)
    }


def differentiate(
    record: Record, module: nn.Module, call: Callable[..., Tensor | dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Runs `call` on the recorded inputs in float64: losses, gradients and buffers must be those of the recording."""
    module.double()
    inputs = {
        k: v.double().requires_grad_() if v.is_floating_point() else v for k, v in record["inputs"].items()
    }
    result = call(**inputs)
    outputs = result if isinstance(result, dict) else {"loss": result}
    outputs["loss"].backward()
    recorded = record["outputs_float64"]
    for name, value in outputs.items():
        close(value.detach(), recorded[name], EXACT, name)
    gradients = recorded["input_grads"] | recorded["param_grads"]
    # A bias in front of a batch norm has none: what is recorded of it is how one processor rounds a sum of 0.
    dust = ROUNDINGS * max((grad.abs().max().item() for grad in gradients.values()), default=0.0)
    for name, grad in recorded["input_grads"].items():
        close(inputs[name].grad, grad, EXACT, f"gradient of {name}", dust)
    parameters = dict(module.named_parameters())
    for name, grad in recorded["param_grads"].items():
        close(parameters[name].grad, grad, EXACT, f"gradient of {name}", dust)
    for name, value in recorded.get("buffers_after", {}).items():
        close(module.state_dict()[name], value, EXACT, name)
    return inputs


@checks("CrossCorrelationLoss")
def cross_correlation_loss(record: Record) -> None:
    module = CrossCorrelationLoss(**arguments(record))
    differentiate(record, module, lambda matrix: module(matrix))


@checks("LatentCrossCorrelationHead")
def latent_cross_correlation_head(record: Record) -> None:
    loss = CrossCorrelationLoss(record["config"]["loss"]["lambd"])
    module = LatentCrossCorrelationHead(**arguments(record), loss=loss)
    module.load_state_dict(record["state_dict"])
    differentiate(record, module, lambda z1, z2: module(z1, z2))


@checks("CosineSimilarityLoss")
def cosine_similarity_loss(record: Record) -> None:
    module = CosineSimilarityLoss(**arguments(record))
    differentiate(record, module, module)


@checks("LatentPredictHead")
def latent_predict_head(record: Record) -> None:
    module = build_module(record["config"], COMMON)
    module.load_state_dict(record["state_dict"])
    differentiate(record, module, lambda input, target: module(input, target))


@checks("ContrastiveHead")
def contrastive_head(record: Record) -> None:
    module = build_module(record["config"], COMMON)
    differentiate(record, module, module)


@checks("MoCoV3Head")
def moco_v3_head(record: Record) -> None:
    config = record["config"]
    module = MoCoV3Head(
        build_module(config["predictor"], COMMON),
        **arguments(record),
        loss=build_module(config["loss"], COMMON),
    )
    module.load_state_dict(record["state_dict"])
    differentiate(record, module, lambda base_out, momentum_out: module(base_out, momentum_out))


@checks("distributed_sinkhorn")
def distributed_sinkhorn(record: Record) -> None:
    config = record["config"]
    assert config["world_size"] == 1
    codes = sinkhorn(record["inputs"]["scores"].double(), config["epsilon"], config["iterations"])
    close(codes, record["outputs_float64"]["codes"], EXACT)


@checks("SwAVLoss")
def swav_loss(record: Record) -> None:
    settings = arguments(record)
    crops = sum(settings.pop("num_crops"))
    module = SwAVHead(settings.pop("feat_dim"), settings.pop("num_prototypes"), SwAVLoss(**settings))
    module.double().load_state_dict(record["state_dict"])
    module.normalize_prototypes()
    close(module.prototypes.weight.detach(), record["outputs_float64"]["prototypes_after"], EXACT)
    differentiate(
        record, module, lambda x: module(module.scores(x.unflatten(0, (crops, -1)).transpose(0, 1)))
    )


def cae_parts(module: nn.Module, logits: Tensor, tokens: Tensor, *latents: Tensor) -> dict[str, Tensor]:
    rows = len(latents[0])
    main, align = module(logits.unflatten(0, (rows, -1)), tokens.view(rows, -1), *latents)
    return {"loss": main + align, "main": main, "align": align}


@checks("CAELoss")
def cae_loss(record: Record) -> None:
    module = CAELoss(record["config"]["lambd"])
    differentiate(
        record,
        module,
        lambda logits, target, latent_pred, latent_target: cae_parts(
            module, logits, target, latent_pred, latent_target
        ),
    )


@checks("CAEHead")
def cae_head(record: Record) -> None:
    module = CAEHead(CAELoss(record["config"]["loss"]["lambd"]))

    def call(
        logits: Tensor, logits_target: Tensor, latent_pred: Tensor, latent_target: Tensor, mask: Tensor
    ) -> dict[str, Tensor]:
        tokens = logits_target.argmax(1).flatten(1)[mask]
        return cae_parts(module, logits, tokens, latent_pred, latent_target)

    differentiate(record, module, call)


@checks("MAEReconstructionLoss")
def mae_reconstruction_loss(record: Record) -> None:
    module = MAEReconstructionLoss()
    differentiate(record, module, module)


@checks("MAEPretrainHead")
def mae_pretrain_head(record: Record) -> None:
    module = MAEPretrainHead(**arguments(record))
    inputs = differentiate(record, module, lambda pred, image, mask: module(pred, image, mask))
    recorded = record["outputs_float64"]
    close(module.patchify(inputs["image"]).detach(), recorded["patchified"], EXACT)
    close(module.target(inputs["image"]).detach(), recorded["target"], EXACT)
    close(module.unpatchify(inputs["pred"]).detach(), recorded["unpatchified_pred"], EXACT)


@checks("SimMIMHead")
def simmim_head(record: Record) -> None:
    module = SimMIMHead(**arguments(record))
    assert record["config"]["loss"]["encoder_in_channels"] == record["inputs"]["pred"].shape[1]
    differentiate(record, module, lambda pred, image, mask: module(pred, image, mask))


@checks("SimMIMReconstructionLoss")
def simmim_reconstruction_loss(record: Record) -> None:
    module = SimMIMReconstructionLoss()
    assert record["config"]["encoder_in_channels"] == record["inputs"]["pred"].shape[1]
    differentiate(record, module, module)


@checks("ClsHead")
def cls_head(record: Record) -> None:
    module = ClsHead(**arguments(record), loss=CrossEntropyLoss())
    module.load_state_dict(record["state_dict"])
    inputs = differentiate(
        record, module, lambda x, label, class_weight=None: module((x,), label, class_weight)
    )
    close(module.logits((inputs["x"],)).detach(), record["outputs_float64"]["logits"], EXACT)


@checks("sincos_2d")
def sincos_2d(record: Record) -> None:
    """Their tokens go down the columns, with the first entry of the resolution as height: our rows, transposed."""
    for case in record["cases"]:
        resolution = case["resolution"]
        height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
        ours = sincos_positions((width, height), case["dim"], case["temperature"], int(case["cls_token"]))
        close(ours, case["value"], SINGLE)


@checks("Sobel")
def sobel(record: Record) -> None:
    # Their mean of the channels has weights of 1/3 in float32.
    close(Sobel()(record["inputs"]["x"].double()), record["outputs_float64"]["out"], SINGLE)


@checks("AliasMethod")
def alias_method(record: Record) -> None:
    """Ours draws uniformly without tables; those it writes for MMSelfSup must imply the same."""

    def implied(keep: Tensor, alias: Tensor) -> Tensor:
        return (keep + torch.zeros_like(keep).index_add_(0, alias, 1 - keep)) / len(keep)

    close(implied(record["prob"], record["alias"]), record["probs"], SINGLE, "how the tables are read")
    model = NPID(ResNet(18, width=8), LinearNeck(64, 4), ContrastiveHead(), SimpleMemory(6, 4))
    tables = mmselfsup.to_state_dict(model)
    prefix = "memory_bank.multinomial."
    close(implied(tables[f"{prefix}prob"], tables[f"{prefix}alias"]), torch.full((6,), 1 / 6), SINGLE)


@checks("SimpleMemory_update")
def simple_memory(record: Record) -> None:
    config, inputs = record["config"], record["inputs"]
    memory = SimpleMemory(config["length"], config["feat_dim"], momentum=1 - config["momentum"]).double()
    memory.rows.copy_(inputs["bank"])
    memory.update(inputs["idx"], F.normalize(inputs["feature"].double(), dim=1))
    close(memory.rows, record["outputs_float64"]["bank_after"], EXACT)


@checks("ODCMemory")
def odc_memory(record: Record) -> None:
    config, update = record["config"], record["update"]
    memory = ODCMemory(
        config["length"],
        config["feat_dim"],
        config["num_classes"],
        momentum=1 - config["momentum"],
        min_cluster=config["min_cluster"],
    )

    def compare(state: Record, bound: float = SINGLE) -> None:
        close(memory.features, state["feature_bank"], bound)
        close(memory.centroids, state["centroids"], bound)
        assert torch.equal(memory.labels, state["label_bank"])

    memory.start(torch.arange(config["length"]), record["init_feature"], record["init_label"])
    compare(record["after_init"])
    before = memory.labels[update["idx"]]
    features, labels = memory.propose(update["idx"], update["feature"])
    assert (labels != before).double().mean().item() == pytest.approx(update["change_ratio"])
    memory.write(update["idx"], features, labels)
    compare(update)
    memory.update_centroids()
    compare(record["after_update_centroids"])
    after = record["after_small_clusters"]
    assert torch.equal(memory.sizes, after["histogram_before"])
    ours = copy.deepcopy(memory)
    memory.split = SklearnSplit(memory)  # type: ignore[method-assign]
    memory.dissolve_small_clusters()
    compare(after)

    # Our 2-means may split a cluster elsewhere, if there, too, no image is nearer to the other half's mean.
    members = (ours.labels == ours.sizes.argmax()).nonzero().flatten()
    rows, leave = ours.features[members], ours.split(members)
    halves = torch.stack([rows[~leave].mean(0), rows[leave].mean(0)])
    assert torch.equal(torch.cdist(rows, halves).argmin(1), leave.long())
    ours.dissolve_small_clusters()
    assert (ours.sizes > 0).all()


def partition(labels: Tensor) -> Tensor:
    return labels[:, None] == labels


@checks("reweight")
def reweight(record: Record) -> None:
    for case in record["cases"]:
        sizes = torch.bincount(case["labels"], minlength=case["num_classes"])
        close(class_weights(sizes, case["pow"], sum_to_one=True), case["weight"], SINGLE)


@checks("DeepCluster_kmeans")
def deepcluster_kmeans(record: Record) -> None:
    rows = record["data"].double()
    if record["pca_dim"] > 0:
        rows = whiten(rows, record["pca_dim"])
    rows = F.normalize(rows, dim=1)
    close(rows @ rows.T, record["gram"], 1e-5)
    for seed in range(3):
        found = kmeans(rows, record["k"], seed=seed)
        assert torch.equal(partition(found.assignment), partition(record["labels"]))


@checks("LARS")
def lars(record: Record) -> None:
    for case in record["cases"]:
        assert case["dampening"] == 0
        params = [nn.Parameter(p.double()) for p in case["params"]]
        groups = []
        for p, overrides in zip(params, case["groups"], strict=True):
            settings = {k: v for k, v in overrides.items() if k != "lars_exclude"}
            groups.append({"params": [p], "adapt": not overrides.get("lars_exclude", False), **settings})
        optimizer = LARS(
            groups,
            lr=case["lr"],
            momentum=case["momentum"],
            weight_decay=case["weight_decay"],
            trust_coefficient=case["eta"],
            nesterov=case["nesterov"],
            split_norm=True,
            lr_in_momentum=True,
        )
        for grads, after in zip(case["grads"], case["after_each_step_float64"], strict=True):
            for p, grad in zip(params, grads, strict=True):
                p.grad = grad.double()
            optimizer.step()
            for p, recorded in zip(params, after, strict=True):
                close(p.detach(), recorded, EXACT)


@checks("lr_schedules")
def lr_schedules(record: Record) -> None:
    """A case counts iterations or epochs: one step an epoch where it counts epochs."""
    for case in record["cases"]:
        total = len(case["values"])
        epochs = case.get("epochs", total)
        optimization = Optimization(
            optimizer=Spec(SGD),
            base_lr=case["base_lr"],
            lr=case["base_lr"],
            warmup_epochs=case.get("warmup_epochs", case.get("warmup_iters", 0)),
            warmup_start=case.get("start_factor", 1e-4),
            schedule="step" if "milestones" in case else "cosine",
            final_lr=case.get("eta_min", 0.0),
            milestones=tuple(case.get("milestones", ())),
            gamma=case.get("gamma", 0.1),
        )
        ours = [
            learning_rate(optimization, Progress(k, total, k * epochs // total, epochs)) for k in range(total)
        ]
        close(ours, case["values"], EXACT, case["kind"])


@checks("ema")
def ema(record: Record) -> None:
    for case in record["cases"]:
        average, source = (nn.Linear(*reversed(case["initial_average"].shape), bias=False) for _ in range(2))
        source, teacher = source.double(), Teacher(average.double())
        teacher.backbone.weight.copy_(case["initial_average"])
        for k, (weight, after) in enumerate(zip(case["sources"], case["averages"], strict=True)):
            source.weight.data.copy_(weight)
            if "max_iters" in case:
                momentum = cosine(case["base_momentum"], case["end_momentum"], k / case["max_iters"])
            else:
                momentum = case["momentum"]
            teacher.update(source, None, momentum if k else 0.0)
            close(teacher.backbone.weight, after, EXACT)
    for case in record["cosine_momentum_values"]:
        ends = case["base_momentum"], case["end_momentum"]
        ours = [cosine(*ends, k / case["max_iters"]) for k in range(len(case["values"]))]
        close(ours, case["values"], SINGLE)  # theirs goes from value to value, and gathers rounding errors


class Seen(nn.Module):
    """A backbone that remembers what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[Tensor] = []

    def forward(self, x: Tensor) -> tuple[Tensor]:
        self.images.append(x)
        return (x,)


@checks("preprocessors")
def preprocessors(record: Record) -> None:
    for case in record["cases"]:
        config = case["config"]
        assert config["bgr_to_rgb"]
        mean, std = ([x / 255 for x in config[name]] for name in ("mean", "std"))
        preprocess = DataPreprocessor(mean, std)
        views = [view.flip(1) for view in case["views"]]
        seen = Seen()
        if config["type"] == "SelfSupDataPreprocessor":
            ours = preprocess(views)
        elif config["type"] == "RotationPredDataPreprocessor":
            head = ClsHead(3, len(views), with_avg_pool=True)
            RotationPred(seen, head, data_preprocessor=preprocess)(views, mode="loss")
            ours = seen.images
        elif config["type"] == "RelativeLocDataPreprocessor":
            neck, head = RelativeLocNeck(3, 4), ClsHead(4, len(views) - 1)
            model = RelativeLoc(seen, neck, head, repeat_center=True, data_preprocessor=preprocess)
            model(views, mode="loss")
            ours = seen.images
        else:
            assert config["type"] == "CAEDataPreprocessor"
            ours = [*preprocess(views[:1]), tokenizer_input(views[1] / 255)]
        assert len(ours) == len(case["outputs"])
        for mine, theirs in zip(ours, case["outputs"], strict=True):
            close(mine, theirs, SINGLE, config["type"])


def tokenizer_input(images: Tensor) -> Tensor:
    """What DALL-E's encoder is given for images in [0, 1]."""
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        torch.save(dict(DALLEEncoder(width=8, num_tokens=4).named_buffers()), file.name)
        tokenizer = DALLETokenizer(file.name)
    given: list[Tensor] = []

    def remember(encoder: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        given.append(args[0])
        return (args[0].repeat(1, 1, 4, 4),)  # large enough for all the pooling

    tokenizer.encoder.register_forward_pre_hook(remember)
    tokenizer(images)
    return given[0]


@checks("transforms")
def transforms(record: Record) -> None:
    rotation = record["rotation"]
    seen = Seen()
    image = rotation["image"].permute(2, 0, 1)[None].float()
    model = RotationPred(seen, ClsHead(3, 4, with_avg_pool=True), clockwise=True)
    model([image], mode="loss")
    assert torch.equal(seen.images[0].permute(0, 2, 3, 1), rotation["images"].float())

    grid = record["relative_loc"]
    side = 255
    canvas = np.zeros((side, side, 3), np.uint8)
    canvas[..., 0], canvas[..., 1] = np.meshgrid(np.arange(side), np.arange(side))
    patch = grid["shapes"][0][0]
    columns = drawn(relative_loc_views(side, patch, crop_fraction=1.0, gray_p=0.0), canvas)
    cell = side // 3
    for i, first in enumerate(grid["first_pixels"]):
        view = columns[f"view_{i}"][0]
        assert list(view.shape) == grid["shapes"][i]
        assert (view[0, 0] // cell).tolist() == (first // cell).tolist(), f"view {i} lies in another cell"

    for case in record["simmim_mask"]["cases"]:
        settings = case["args"]
        pipeline = simmim_views(
            settings["input_size"],
            settings["model_patch_size"],
            settings["mask_patch_size"],
            settings["mask_ratio"],
        )
        mask = drawn(pipeline, canvas)["mask"][0]
        assert list(mask.shape) == case["shape"]
        assert mask.sum() == case["ones"]


def drawn(pipeline: ViewPipeline, image: np.ndarray) -> dict[str, np.ndarray]:
    """All columns of one sample."""
    out = {name: np.zeros((1, *column.shape), column.dtype) for name, column in pipeline.columns.items()}
    pipeline.write_image(image, seed=0, epoch=0, index=0, out=out, row=0)
    return out
