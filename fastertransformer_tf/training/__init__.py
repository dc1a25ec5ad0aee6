"""Fine-tunes BERT with TensorFlow's own transformer."""
