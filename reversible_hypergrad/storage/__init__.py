"""Where the pieces of a trajectory wait to be read once, in reverse order. Internal."""
