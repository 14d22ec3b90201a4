"""Pure functions of tensors that say how good representations are, usable while training and after."""
