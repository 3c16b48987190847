"""Lists of images: each file here reads one kind and yields `ImageRef`s."""
