"""The command line: `dynamo-fast`, the same as `python -m dynamo_fast`."""
