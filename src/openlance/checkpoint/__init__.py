"""A checkpoint as it lies on disk: names, tensors, forms of folders, the hub."""
