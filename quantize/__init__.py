"""From a BF16 checkpoint to a verified quantized one. Works alone: `python -m quantize --help`."""
