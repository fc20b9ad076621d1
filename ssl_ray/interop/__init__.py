"""Weights and configurations of other code bases."""

from ssl_ray.interop.weights import LoadReport, load_backbone, read_state_dict

__all__ = ["LoadReport", "load_backbone", "read_state_dict"]
