"""Runs on Kubernetes through KubeRay: manifests made from a few choices, and a strict check of anybody's manifest.

`choices` is what a person decides, `sizes` what follows in pods, `groups` and `manifest` write it down. `check` reads a
manifest against KubeRay's own schemas (`schema`) and against what its operator refuses beyond them (`rules`).
"""
