"""RotationPred of MMSelfSup."""

from ssl_ray.interop.mmselfsup.config import Config, arguments_of, build_parts
from ssl_ray.interop.mmselfsup.correspondence import Correspondence
from ssl_ray.interop.mmselfsup.modules import COMMON
from ssl_ray.models import RotationPred


def _rotation_pred(config: Config) -> RotationPred:
    arguments_of(config, {})
    return RotationPred(**build_parts(config, COMMON), clockwise=True)


CORRESPONDENCE = Correspondence(_rotation_pred)
