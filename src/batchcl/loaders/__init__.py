"""The bytes of images that the service can't fetch itself: a reader for each kind of place that they lie in."""
