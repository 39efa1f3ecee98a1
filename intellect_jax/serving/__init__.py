"""A model behind HTTP, as clients of OpenAI's API speak it."""
