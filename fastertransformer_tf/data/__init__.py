"""Turns the files of GLUE and SQuAD tasks into features, and logits into answers."""
