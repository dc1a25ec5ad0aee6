"""What the command-line programs share: flags, reports, batches."""
