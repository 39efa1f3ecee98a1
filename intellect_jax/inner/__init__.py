"""One island's training step."""
