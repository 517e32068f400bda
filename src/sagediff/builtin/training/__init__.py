"""What the training of every built-in model has in common."""
