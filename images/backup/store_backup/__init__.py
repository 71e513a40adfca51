"""Backups of Redis, of Elasticsearch and of the cluster's own objects, in one restic repository each."""
