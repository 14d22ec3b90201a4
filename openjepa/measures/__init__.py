"""Measures of how good representations are, as pure functions of tensors. Usable during training and afterwards."""
