"""The contract every algorithm keeps: three forward modes, and hooks for what lies outside the gradient."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor, nn

from ssl_ray.errors import UserError
from ssl_ray.models.encoder import pooled

Views = list[Tensor]
Samples = dict[str, Tensor]


class Progress(NamedTuple):
    """Where the run is. Passed to whoever needs it; nobody looks it up.

    `step` and `epoch` count from 0 and name the optimiser step being taken, whatever the number of
    micro-batches; `total_steps` and `total_epochs` are those of the whole run.
    """

    step: int
    total_steps: int
    epoch: int
    total_epochs: int


@dataclass
class Output:
    """What mode `loss` returns.

    loss: scalar to differentiate. metrics: named parts for the log, detached scalars.
    state: detached tensors that `after_step` writes into teachers, queues and banks; every tensor has the
    batch as its first axis, so that micro-batches of one step are joined by concatenation.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class ParamGroup:
    """Parameters that share optimiser settings.

    weight_decay, momentum and lr_scale multiply the recipe's values (0 switches one off), as far as the optimiser has
    such a setting: AdamW has no momentum. adapt=False leaves the group out of LARS's trust ratio; fixed_lr=True keeps
    the lr at its peak for the whole run.
    """

    params: list[nn.Parameter]
    weight_decay: float = 1.0
    momentum: float = 1.0
    lr_scale: float = 1.0
    adapt: bool = True
    fixed_lr: bool = False


def apart(
    groups: Sequence[ParamGroup], module: nn.Module, **settings: Any
) -> tuple[list[ParamGroup], list[ParamGroup]]:
    """The groups without the parameters of `module`, and such groups of them alone, which get `settings`."""
    own = {id(p) for p in module.parameters()}
    others = [replace(g, params=[p for p in g.params if id(p) not in own]) for g in groups]
    its = [replace(g, params=[p for p in g.params if id(p) in own], **settings) for g in groups]
    return others, its


class Extract(Protocol):
    """Applies a function to every training image once, in its plain view (resized, centre crop, nothing random)."""

    def __call__(self, function: Callable[[Views], Tensor]) -> tuple[Tensor, Tensor]:
        """Returns (index (n,) int64 ascending, results (n, ...)) of this rank's share, on the model's device.

        function: from normalised views [(B, 3, H, W)] to (B, ...); called in evaluation mode, without gradient.
        Shares are disjoint and together hold every index 0..N-1 once: rank r has those that are r modulo W.
        """


class BaseModel(nn.Module):
    """An algorithm: backbone, optional neck and head, and what the subclass adds (teacher, memory).

    Modules arrive built; configs never enter one. The head owns its loss. `data_preprocessor` turns uint8
    views into what the backbone expects on its own device; float views pass through it untouched.

    Subclasses implement `extract_feat`, `loss` and `predict`. `loss` writes no state but BN statistics: it can be
    called twice, compared, compiled. What a step changes outside the gradient happens in `after_step`, once per
    optimiser step. If losing something would change the next loss, it is a persistent buffer.

    `num_views`: how many its loss needs at least; SwAV, RelativeLoc and RotationPred count theirs themselves.
    `decay_norms`: weight decay acts on biases and norms, too. Most algorithms that were published with SGD have it.
    `min_rows`: of a micro-batch, those of all workers together; the loss means nothing for fewer. 2 where the rows of a
    batch are compared with each other. A head, a loss, any module inside may say so, too.
    `needs_labels`: `samples` hold the data set's `label` (B,). No pretraining has it: what a person labelled never
    reaches its loss.
    """

    num_views = 1
    decay_norms = False
    min_rows = 1
    needs_labels = False

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module | None = None,
        head: nn.Module | None = None,
        pretrained: str | None = None,
        data_preprocessor: nn.Module | None = None,
    ) -> None:
        from ssl_ray.models.preprocessing import DataPreprocessor

        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.data_preprocessor = data_preprocessor or DataPreprocessor()
        if pretrained is not None:
            from ssl_ray.interop.weights import load_backbone

            load_backbone(self.backbone, pretrained)

    def forward(
        self,
        views: Views,
        samples: Samples | None = None,
        mode: Literal["tensor", "loss", "predict"] = "tensor",
    ) -> Any:
        """Runs one of the three modes.

        views: list of (B, 3, H, W), uint8 in 0..255 or float already normalised. samples: `index` (B,) and what the
        view pipeline made (`target`, `mask`, ...). Returns features ("tensor"), an `Output` ("loss") or the
        algorithm's prediction ("predict"). Raises ValueError for another mode, and for too few views.
        """
        views = self.data_preprocessor(views)
        if mode == "tensor":
            return self.extract_feat(views)
        if mode == "loss":
            if len(views) < self.num_views:
                raise UserError(
                    f"{type(self).__name__} needs {self.num_views} views of an image, gets {len(views)}; set "
                    "views.num_views, or take other views"
                )
            return self.loss(views, samples or {})
        if mode == "predict":
            return self.predict(views, samples or {})
        raise ValueError(f"mode: {mode!r} is not one of 'tensor', 'loss', 'predict'")

    def extract_feat(self, views: Views) -> Any:
        """Features of the first view, as the backbone returns them."""
        raise NotImplementedError

    def loss(self, views: Views, samples: Samples) -> Output:
        """The training loss of normalised views."""
        raise NotImplementedError

    def predict(self, views: Views, samples: Samples) -> Any:
        """What the algorithm answers about its input: a reconstruction, a label, an embedding."""
        raise NotImplementedError

    def embed(self, views: Views) -> Tensor:
        """Pooled backbone features of the first view, (B, D): what kNN and probes judge.

        The backbone's own `embed` where it has one (ViTs), else the global average of its last map.
        """
        return pooled(self.backbone, self.data_preprocessor(views)[0])

    @property
    def projector(self) -> Callable[[Any], Tensor] | None:
        """What makes projections (B, P) of the backbone's output; None where the neck does not project."""
        from ssl_ray.models.necks import LinearNeck, NonLinearNeck

        return self.neck if isinstance(self.neck, LinearNeck | NonLinearNeck) else None

    def cluster_sizes(self) -> Tensor | None:
        """Training images in each cluster, (K,), the same on every rank; None where no image has a cluster."""
        return None

    def assign(self, projections: Tensor) -> Tensor | None:
        """How many of the projections (B, P) fall to each cluster, (K,); None where the algorithm has no such."""
        return None

    def before_epoch(self, progress: Progress, extract: Extract) -> Iterable[nn.Parameter] | None:
        """Before the first step of an epoch. `extract` runs over the training set: every rank calls it, or none.

        Returns parameters that were made anew, if any: what the optimiser remembers of them is dropped.
        """
        return None

    def before_step(self, progress: Progress) -> None:
        """Gradients exist, the optimiser has not stepped."""

    def after_step(self, state: dict[str, Tensor], progress: Progress) -> None:
        """The weights are new: write teachers, queues and banks from `Output.state`."""

    def param_groups(self) -> list[ParamGroup]:
        """Trainable parameters: weights, and apart from them biases and norms (see `decay_norms`; never adapted)."""
        trainable = [p for p in self.parameters() if p.requires_grad]
        return [
            ParamGroup([p for p in trainable if p.ndim > 1]),
            ParamGroup(
                [p for p in trainable if p.ndim <= 1], weight_decay=float(self.decay_norms), adapt=False
            ),
        ]
