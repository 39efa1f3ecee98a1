"""A trained model at work: it writes text, and says how likely text is."""
