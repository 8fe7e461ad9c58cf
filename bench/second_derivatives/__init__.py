"""Which second derivatives of torch's layers, losses and functions are right, wrong or missing: see __main__."""
