"""Samples: where they come from, which one is next, and what the views of it are."""
