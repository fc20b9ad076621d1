"""Memories: what an algorithm remembers of earlier batches."""

from ssl_ray.models.memories.odc_memory import ODCMemory
from ssl_ray.models.memories.queue import Queue
from ssl_ray.models.memories.simple_memory import SimpleMemory
from ssl_ray.models.memories.swav_queue import SwAVQueue

__all__ = [
    "ODCMemory",
    "Queue",
    "SimpleMemory",
    "SwAVQueue",
]
