"""Fine-tunes BERT, in float32 or as int8 will compute it, from labels and from a teacher."""
