"""What the transformers engine is made of. All but `folder` and `sizes` import torch, so they are loaded late."""
