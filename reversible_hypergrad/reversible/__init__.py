"""The reversible state of tensors: what the optimizer and whole training runs share. Internal."""
