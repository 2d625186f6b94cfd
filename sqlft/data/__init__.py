"""Rows and a template to conversations, checked and split."""

from sqlft.data.findings import Finding
from sqlft.data.prepare import Prepared, prepare
from sqlft.data.prompts import Prompt

__all__ = ["Finding", "Prepared", "Prompt", "prepare"]
