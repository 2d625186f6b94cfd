"""Rows and a template to conversations, checked and split."""

from sqlft.data.conversations import Finding
from sqlft.data.outputs import Misfit, Output, Outputs
from sqlft.data.prepare import Prepared, prepare
from sqlft.data.prompts import Prompt

__all__ = ["Finding", "Misfit", "Output", "Outputs", "Prepared", "Prompt", "prepare"]
