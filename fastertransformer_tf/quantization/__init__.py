"""INT8: quantizer points, ranges, integers, and the checkpoints that hold them."""
