"""The one seam to transformers: a cache-layer class, an attention function, and what is built on the two.

No model is patched and nothing is hung on a module: all state lives in the cache object that travels through the model.
"""
