"""Talk to Qwen3-Omni on your own GPU, or to small models on any CPU."""

__version__ = "0.1.0"
