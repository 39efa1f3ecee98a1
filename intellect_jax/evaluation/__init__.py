"""EleutherAI's lm-evaluation-harness, over this project's models."""
