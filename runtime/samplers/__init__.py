"""Sampling rules, one a file; `sfumato.runtime.sampler` is their face."""
