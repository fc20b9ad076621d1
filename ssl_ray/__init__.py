"""ssl-ray: pretrain image models without labels, from one laptop to a GPU cluster with the same command."""

__version__ = "0.1.0"
