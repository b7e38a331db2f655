"""Memory of training and inference on every device of a parallel layout, part by part."""
