"""What makes a worker a model: KV events and load for frontends (model_card.md)."""
