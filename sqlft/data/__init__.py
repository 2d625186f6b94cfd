"""Rows and a template to conversations, checked and split; answers with types as JSON, and back.

FINETUNE and ANALYZE TRAINING DATA call `prepare` with Arrow tables, and get a training set with findings.  What asks a
model calls `Prompt` for the messages and `Outputs` for the values in an answer.
"""

from sqlft.data.conversations import Finding
from sqlft.data.outputs import OutputColumn, OutputMismatch, Outputs
from sqlft.data.prepare import PreparedData, prepare
from sqlft.data.prompts import Prompt

__all__ = ["Finding", "OutputColumn", "OutputMismatch", "Outputs", "PreparedData", "Prompt", "prepare"]
