"""kvledger."""
