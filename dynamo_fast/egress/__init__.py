"""The router's side of the request plane."""
