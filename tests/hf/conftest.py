"""What needs torch and transformers: `make test-extras` runs it."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here comes from a hub

HERE = os.path.dirname(__file__)


def pytest_collection_modifyitems(items):
  for item in items:
    if str(item.path).startswith(HERE):
      item.add_marker(pytest.mark.hf)
