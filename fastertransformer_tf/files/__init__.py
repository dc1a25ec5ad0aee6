"""Reads and writes the files of models and data; free of TensorFlow."""
