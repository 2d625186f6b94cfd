"""Rows and a template to conversations, checked and split."""

from sqlft.data.conversations import Finding
from sqlft.data.outputs import OutputColumn, OutputMismatch, Outputs
from sqlft.data.prepare import PreparedData, prepare
from sqlft.data.prompts import Prompt

__all__ = ["Finding", "OutputColumn", "OutputMismatch", "Outputs", "PreparedData", "Prompt", "prepare"]
