"""What the request plane tells about itself: metrics, tracing, health."""
