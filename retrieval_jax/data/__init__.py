"""Sources of images, each a function that returns an `ImageSet`, and the gallery/query split."""
