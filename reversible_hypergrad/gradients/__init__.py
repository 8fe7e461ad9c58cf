"""The training loss's gradient as a function of the step: one code path for training and for its reversal. Internal."""
