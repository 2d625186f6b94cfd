"""What a training will take, before it starts: memory, minutes, whether it fits.

Called by EXPLAIN FINETUNE, by FINETUNE and by `train.loop`, which plans its passes with the same figures.
"""
