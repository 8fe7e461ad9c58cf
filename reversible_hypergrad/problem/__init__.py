"""What is trained and what is asked of it: weights, settings per step, the gradient as an interface, the report. Internal."""
