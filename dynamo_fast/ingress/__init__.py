"""The worker's side of the request plane."""
