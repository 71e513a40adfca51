"""Backups of Redis and of the cluster's own objects, in one restic repository each."""
