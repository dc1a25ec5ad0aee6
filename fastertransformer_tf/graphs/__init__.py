"""What all TensorFlow graphs of this package share: float types, sessions, resource variables."""
