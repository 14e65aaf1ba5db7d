"""MiniLLM: on-policy distillation of language models by reverse KL (arXiv 2306.08543)."""

__version__ = "0.1.0"
