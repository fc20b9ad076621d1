"""SwAV of MMSelfSup. Its queue and the freezing of prototypes are a hook's there: none of them in a model's config."""

from collections.abc import Mapping

from torch import Tensor

from ssl_ray.errors import UserError
from ssl_ray.interop.mmselfsup.config import Config, Readers, arguments_of, build_module, build_parts
from ssl_ray.interop.mmselfsup.correspondence import Correspondence
from ssl_ray.interop.mmselfsup.modules import COMMON
from ssl_ray.interop.weights.names import Rename
from ssl_ray.models import BaseModel, SwAV, SwAVHead, SwAVLoss, SwAVNeck


def _swav_neck(config: Config) -> SwAVNeck:
    names = {n: n for n in ("in_channels", "hid_channels", "out_channels", "with_avg_pool")}
    arguments = arguments_of(config, names, {"with_l2norm": True})
    for name in ("hid_channels", "out_channels"):
        if not arguments[name]:
            raise UserError(
                f"SwAVNeck: {name}=0 (a neck without that layer) is not supported; give its width"
            )
    return SwAVNeck(**arguments)


def _swav_head(config: Config) -> SwAVHead:
    """From the config of the loss: there the prototypes belong to it. The number of crops is that of the views."""
    of_head = {"feat_dim": "in_channels", "num_prototypes": "num_prototypes"}
    of_loss = {n: n for n in ("temperature", "epsilon", "sinkhorn_iterations", "crops_for_assign")}
    arguments = arguments_of(config, of_head | of_loss, elsewhere=("num_crops",))
    loss = SwAVLoss(**{name: arguments.pop(name) for name in of_loss if name in arguments})
    if not isinstance(arguments.get("num_prototypes", 1), int):
        raise UserError(
            f"SwAVLoss: num_prototypes={arguments['num_prototypes']!r} is not supported; give one number"
        )
    return SwAVHead(**arguments, loss=loss)


def _unwrapped(config: Config) -> SwAVHead:
    arguments_of(config, {})
    head = build_module(config["loss"], {"SwAVLoss": _swav_head})
    assert isinstance(head, SwAVHead)
    return head


_READERS: Readers = COMMON | {"SwAVNeck": _swav_neck, "SwAVHead": _unwrapped}
_RENAMES = (
    Rename("head.loss.prototypes.", "head.prototypes."),
    Rename("neck.projection_neck.0.", "neck.projection.fc0."),
    Rename("neck.bn.", "neck.projection.bn0."),
    Rename("neck.projection_neck.3.", "neck.projection.fc1."),
)


def _swav(config: Config) -> SwAV:
    return SwAV(**build_parts(config, _READERS), **arguments_of(config, {}), freeze_prototypes_epochs=0)


def _second_name(model: BaseModel) -> Mapping[str, Tensor]:
    """Their neck registers its batch norm twice."""
    if not isinstance(model.neck, SwAVNeck):
        return {}
    norm = model.neck.projection.get_submodule("bn0")
    return {f"neck.projection_neck.1.{name}": value for name, value in norm.state_dict().items()}


CORRESPONDENCE = Correspondence(
    _swav, lambda model: _RENAMES, derived=_second_name, elsewhere=frozenset({"queue.rows"})
)
