"""Builds BERT and its encoder in TensorFlow, with the ops or without."""
