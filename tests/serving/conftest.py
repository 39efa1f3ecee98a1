"""What needs starlette, uvicorn and openai: `make test-extras` runs it."""

import os

import pytest

HERE = os.path.dirname(__file__)


def pytest_collection_modifyitems(items):
  for item in items:
    if str(item.path).startswith(HERE):
      item.add_marker(pytest.mark.serve)
