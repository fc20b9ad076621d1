"""MoCo v1 and v2 of MMSelfSup."""

from ssl_ray.interop.mmselfsup.config import Config, Readers, arguments_of, build_parts
from ssl_ray.interop.mmselfsup.correspondence import POINTER_LAYOUT, QUEUE_LAYOUT, Correspondence, teacher_at
from ssl_ray.interop.mmselfsup.modules import COMMON
from ssl_ray.interop.weights.names import Rename
from ssl_ray.models import BaseModel, MoCo, NonLinearNeck


def _moco_v2_neck(config: Config) -> NonLinearNeck:
    names = {n: n for n in ("in_channels", "hid_channels", "out_channels", "with_avg_pool")}
    arguments = arguments_of(config, names)
    return NonLinearNeck(**arguments, with_bias=True, with_last_bias=True, with_bn=False, with_last_bn=False)


_READERS: Readers = COMMON | {"MoCoV2Neck": _moco_v2_neck}


def _moco(config: Config) -> MoCo:
    parts = build_parts(config, _READERS)
    names = {"queue_len": "queue_size", "momentum": "momentum"}
    return MoCo(**parts, **arguments_of(config, names, {"feat_dim": parts["neck"].out_channels}))


def _renames(model: BaseModel) -> tuple[Rename, ...]:
    renames = (*teacher_at("encoder_k"), Rename("queue", "queue.rows"), Rename("queue_ptr", "queue.pointer"))
    if isinstance(model.neck, NonLinearNeck) and not hasattr(model.neck, "bn0"):
        renames += (Rename(".mlp.0.", ".fc0."), Rename(".mlp.2.", ".fc1."))  # MoCoV2Neck
    return renames


CORRESPONDENCE = Correspondence(
    _moco,
    _renames,
    layouts={"queue.rows": QUEUE_LAYOUT, "queue.pointer": POINTER_LAYOUT},
    counter="encoder_k.steps",
)
