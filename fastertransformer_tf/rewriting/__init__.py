"""Finds BERT encoders in TensorFlow graphs of any origin and puts the op in their place."""
