"""Ray Tune over training runs."""
