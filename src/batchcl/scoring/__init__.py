"""From a stream of images to a stream of outcomes."""
