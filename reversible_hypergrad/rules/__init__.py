"""Optimizers: what each one's settings are, and how they spread over parameters and steps."""
