"""All measurements on a GPU in one go: see bench/gpu/__main__.py."""
