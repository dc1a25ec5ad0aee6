"""TensorFlow checkpoints by variable name: read, written, restored into a graph."""
