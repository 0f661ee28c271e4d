"""What runs inside a sandbox: the zygote, the instance's loop and the engines that decode, run and encode a batch.

The only room that may import torch or onnxruntime, and the only one that imports user code. It never imports the
server's side.
"""
