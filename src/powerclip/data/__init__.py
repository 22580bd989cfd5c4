"""Samples, shards and batches."""
