"""Memories: what an algorithm remembers of earlier batches."""

from ssl_ray.models.memories.queue import Queue

__all__ = ["Queue"]
