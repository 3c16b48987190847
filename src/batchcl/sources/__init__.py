"""Lists of images: each module reads one kind of list and yields `ImageRef`s."""
