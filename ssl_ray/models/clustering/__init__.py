"""Clustering of the features of a whole data set, spread over the workers."""

from ssl_ray.models.clustering.class_weights import Power, class_weights
from ssl_ray.models.clustering.kmeans import KMeans, kmeans
from ssl_ray.models.clustering.pca import whiten

__all__ = ["KMeans", "Power", "class_weights", "kmeans", "whiten"]
