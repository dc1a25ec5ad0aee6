"""Brings the .so with the ops into TensorFlow, where and when both are there."""
