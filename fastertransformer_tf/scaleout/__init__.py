"""Many texts on many processes: batch scoring with Ray Data, serving with Ray Serve."""
