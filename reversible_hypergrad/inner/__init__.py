"""The inner problem: what is trained and how, and one step of its SGD, forwards and through its adjoint. Internal."""
