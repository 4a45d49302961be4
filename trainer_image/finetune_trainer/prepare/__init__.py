"""The CPU stage before any GPU is held: can the model be loaded, can every dataset line be used?

Nothing here imports torch, so the stage starts in a second and runs in a small pod. Start reading at
``stage.py``.
"""
