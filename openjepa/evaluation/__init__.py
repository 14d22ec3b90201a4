"""Evaluation of encoders. A protocol is one file, its settings, and one entry of PROTOCOLS. Does not import torch.

A protocol is a function `(probe, settings) -> tuple[ProtocolResult, ...]`. It returns one result for each selection rule of
`selections(settings)`. `probe` is a FeatureProbe, or an ImageProbe whose images have label maps if the protocol needs them.
Protocols that share one function are called once, with their names in `settings.protocols`. Each of their results names the
protocol that it belongs to. The types are in `openjepa.evaluation.protocol`, PROTOCOLS is in `openjepa.settings.protocols`.
"""
