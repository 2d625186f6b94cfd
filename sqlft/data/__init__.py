"""Rows and a template to conversations, checked and split."""

from sqlft.data.prompts import Prompt

__all__ = ["Prompt"]
