"""dynamo_fast: NVIDIA Dynamo's request plane for Python."""

__version__ = "0.1.0"
