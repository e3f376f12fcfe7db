"""Artifact store: outputs by fingerprint, manifests, run records."""
