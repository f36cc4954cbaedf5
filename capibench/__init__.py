"""CapiBench measures whole RAG/LLM serving stacks: index, cache, batching, quantization composed.

Importing this package imports nothing heavy.
"""

__version__ = "0.1.0"
