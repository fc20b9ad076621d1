"""ODC of MMSelfSup. Of its memory only the centroids are in the state dict."""

from ssl_ray.interop.mmselfsup.config import Config, Readers, arguments_of, build_module, build_parts
from ssl_ray.interop.mmselfsup.correspondence import Correspondence
from ssl_ray.interop.mmselfsup.modules import COMMON
from ssl_ray.interop.weights.names import Rename
from ssl_ray.models import ODC, ODCMemory, ODCNeck


def _odc_neck(config: Config) -> ODCNeck:
    names = {n: n for n in ("in_channels", "hid_channels", "out_channels", "with_avg_pool")}
    return ODCNeck(**arguments_of(config, names))


def _odc_memory(config: Config) -> ODCMemory:
    names = {
        "length": "num_samples",
        "feat_dim": "dim",
        "num_classes": "num_clusters",
        "momentum": "momentum",
        "min_cluster": "min_cluster",
    }
    arguments = arguments_of(config, names, elsewhere=("debug",))
    # Theirs is the weight of the new feature.
    return ODCMemory(**{**arguments, "momentum": 1 - arguments["momentum"]})


_READERS: Readers = COMMON | {"ODCNeck": _odc_neck}


def _odc(config: Config) -> ODC:
    memory = build_module(config["memory_bank"], {"ODCMemory": _odc_memory})
    assert isinstance(memory, ODCMemory)
    return ODC(
        **build_parts(config, _READERS), memory=memory, **arguments_of(config, {}), weights_sum_to_one=True
    )


CORRESPONDENCE = Correspondence(
    _odc,
    lambda model: (Rename("memory_bank.", "memory."),),
    elsewhere=frozenset({"memory.features", "memory.labels"}),
)
