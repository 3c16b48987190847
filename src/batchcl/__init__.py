"""batchcl: bulk scoring with Amazon Rekognition Custom Labels."""

from batchcl.__about__ import __version__

__all__ = ["__version__"]
