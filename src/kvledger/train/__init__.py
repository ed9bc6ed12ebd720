"""Training which KV heads may forget: PruLong and DuoAttention on an unmodified Hugging Face model."""
