"""DenseCL of MMSelfSup.

Its warm-up is a hook there, outside the model: a model from a config has none (`start_iters` 0).
"""

from ssl_ray.interop.mmselfsup.config import Config, Readers, arguments_of, build_parts
from ssl_ray.interop.mmselfsup.correspondence import POINTER_LAYOUT, QUEUE_LAYOUT, Correspondence, teacher_at
from ssl_ray.interop.mmselfsup.modules import COMMON
from ssl_ray.interop.weights.names import Rename
from ssl_ray.models import DenseCL, DenseCLNeck


def _neck(config: Config) -> DenseCLNeck:
    names = {n: n for n in ("in_channels", "hid_channels", "out_channels", "num_grid")}
    return DenseCLNeck(**arguments_of(config, names))


_READERS: Readers = COMMON | {"DenseCLNeck": _neck}
_RENAMES = (
    *teacher_at("encoder_k"),
    Rename("encoder_k.steps", "steps"),
    Rename("queue", "queue.rows"),
    Rename("queue_ptr", "queue.pointer"),
    Rename("queue2", "dense_queue.rows"),
    Rename("queue2_ptr", "dense_queue.pointer"),
)


def _densecl(config: Config) -> DenseCL:
    parts = build_parts(config, _READERS)
    names = {"queue_len": "queue_size", "momentum": "momentum", "loss_lambda": "loss_lambda"}
    arguments = arguments_of(config, names, {"feat_dim": parts["neck"].out_channels})
    return DenseCL(**parts, **arguments, start_iters=0)


CORRESPONDENCE = Correspondence(
    _densecl,
    lambda model: _RENAMES,
    layouts={
        "queue.rows": QUEUE_LAYOUT,
        "queue.pointer": POINTER_LAYOUT,
        "dense_queue.rows": QUEUE_LAYOUT,
        "dense_queue.pointer": POINTER_LAYOUT,
    },
    counter="encoder_k.steps",
)
