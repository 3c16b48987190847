"""Reads images that are sent to the service as bytes: local files, archive members, and S3 objects."""
