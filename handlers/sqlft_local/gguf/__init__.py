"""GGUF, the file that llama.cpp and OpenVINO read: written of a base and its adapter, and read.

Called by `base` and `predict`.  In: folders of a base and an adapter, as transformers and PEFT write them.  Out: a
file, or a folder of that kind made of one.
"""
