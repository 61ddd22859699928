"""Faults that were put into the code by hand, and the test that sees each: `make mutants`."""
