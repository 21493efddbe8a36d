"""Tiny random LLaVA-NeXT checkpoints."""

from ptp.benchmarks.random_checkpoint import Geometry, tokenizer, write_checkpoint

__all__ = ["Geometry", "tokenizer", "write_checkpoint"]
